//go:build !unix

package redistest

// Pause skips the test: a process can't be stopped here without ending it.
func (s *Server) Pause() { s.t.Skip("no SIGSTOP on this system") }

// Resume has nothing to do.
func (s *Server) Resume() {}
