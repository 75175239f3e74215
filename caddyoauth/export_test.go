package caddyoauth

// WriteEvents has the configuration in force write at once what it has noted for the log of requests
// that were refused, so that tests need not wait for it.
func WriteEvents() {
	if app := activeApp(); app != nil {
		for _, l := range app.refusals {
			l.writeDue()
		}
	}
}

// OpenKeys returns how many sets of issuers' keys are open.
func OpenKeys() (n int) {
	openKeys.Range(func(_, _ any) bool {
		n++
		return true
	})
	return n
}
