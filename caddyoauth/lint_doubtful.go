package caddyoauth

// lintDoubtfulChecks are about what works and is probably not meant.
func lintDoubtfulChecks() []lintCheck {
	return nil
}
