//go:build unix

package redistest

import "syscall"

// Pause stops the process without ending it: its connections stay open but silent.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets the process go on. It does nothing if Stop has ended it meanwhile.
func (s *Server) Resume() {
	if s.cmd != nil {
		s.signal(syscall.SIGCONT)
	}
}

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}
