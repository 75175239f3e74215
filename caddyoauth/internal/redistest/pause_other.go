//go:build !unix

package redistest

// Pause skips the test: this system can't stop a process without ending it.
func (s *Server) Pause() { s.t.Skip("no SIGSTOP on this system") }

// Resume does nothing, since Pause never stops a process.
func (s *Server) Resume() {}
