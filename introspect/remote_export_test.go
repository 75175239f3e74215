package introspect

// Understand turns the body of an answer into facts.
func (r *Remote) Understand(body []byte) (*Facts, error) { return r.understand(body) }

// InCircuit returns the number of failures in a row that the circuit has counted.
func (r *Remote) InCircuit() int {
	r.circuit.mu.Lock()
	defer r.circuit.mu.Unlock()
	return r.circuit.failures
}

// Settle waits until no witness is being asked about.
func (r *Remote) Settle() { r.checks.Wait() }

// Witnesses returns how many there are.
func (r *Remote) Witnesses() int { return len(r.witnesses.beside(TokenID{}, r.cfg.Now())) }
