package caddyoauth_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"
)

const (
	diskVariable   = "GATEWAY_TEST_DISK"
	fillerVariable = "GATEWAY_TEST_FILLER"
)

// In the other process, this prepares a full disk. Writing beyond the limit raises a signal that
// would end a Go program. If the signal is ignored, it is an error.
func init() {
	if os.Getenv("GATEWAY_TEST_OPTIONS") == "" {
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	if disk := os.Getenv(diskVariable); disk != "" {
		if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=352k"); err != nil {
			panic(err)
		}
		if err := os.WriteFile(os.Getenv(fillerVariable), make([]byte, 128<<10), 0o600); err != nil {
			panic(err)
		}
	}
}

// limitFiles limits the size of files that a process may write.
func limitFiles(t *testing.T, pid int, size uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: size, Max: ^uint64(0)}
	const fileSize = 1 // RLIMIT_FSIZE
	if _, _, err := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), fileSize, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); err != 0 {
		t.Fatal(err)
	}
}

// ownNamespace makes a process believe that it is the user with ID as. It has that user's rights
// inside its own namespace, and no others. Some systems don't allow this.
func ownNamespace(cmd *exec.Cmd, as int, flags uintptr) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: as, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: as, HostID: os.Getgid(), Size: 1}},
	}
}

// namespaces reports whether the system allows such namespaces.
func namespaces() bool {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	ownNamespace(cmd, 0, syscall.CLONE_NEWNS)
	return cmd.Run() == nil
}

// diskFull lets a gateway fill its disk, and makes room again.
func diskFull(t *testing.T, rounds int, requests *atomic.Int64) {
	for range rounds {
		for _, c := range []struct {
			name  string
			limit func(size uint64) uint64 // nil for a disk that is really full
		}{
			{"the file can't grow", func(size uint64) uint64 { return size }},
			{"nothing can be written", func(uint64) uint64 { return 1 }},
			{"a small disk", nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				folder := t.TempDir()
				path := filepath.Join(folder, "tokens.db")
				options := "store bbolt " + path + "\n" + testClients
				cmd := gatewayProcess(options)
				filler := filepath.Join(folder, "filler")
				if c.limit == nil {
					if !namespaces() {
						t.Log("not tried: this system does not allow mounting a file system in a namespace")
						return
					}
					ownNamespace(cmd, 0, syscall.CLONE_NEWNS)
					cmd.Env = append(cmd.Env, diskVariable+"="+folder, fillerVariable+"="+filler)
				}
				g, kill := runGatewayProcess(t, cmd)
				hot := g.token("reader")
				if a := g.get("/x", hot); a.StatusCode != 200 {
					t.Fatalf("before: %d", a.StatusCode)
				}
				good := []string{hot}
				for range 130 {
					good = append(good, g.token("reader"))
				}
				if c.limit != nil {
					info, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					limitFiles(t, cmd.Process.Pid, c.limit(uint64(info.Size())))
				}

				full := false
				for !full {
					if len(good) > 20_000 {
						t.Fatal("the disk does not get full")
					}
					a := g.fetch("reader")
					requests.Add(1)
					if a.StatusCode == 200 {
						good = append(good, tokenIn(a))
						continue
					}
					wantE(t, a, 503, "temporarily_unavailable", path)
					full = true
				}
				t.Logf("full after %d tokens", len(good))
				var revoked, unrevoked []string
				for i, token := range good {
					if i%2 == 0 {
						requests.Add(1)
						if a := g.revoke("reader", token); a.StatusCode == 200 {
							revoked = append(revoked, token)
						} else {
							wantE(t, a, 503, "temporarily_unavailable", path)
							unrevoked = append(unrevoked, token)
						}
						if len(revoked)+len(unrevoked) == 60 {
							good = good[i+1:]
							break
						}
					}
				}
				t.Logf("full: %d revocations were made and %d refused", len(revoked), len(unrevoked))
				if c.limit != nil && c.limit(2) == 1 && len(revoked) > 0 {
					t.Error("revocations were acknowledged that can't have been written")
				}
				check := func(when string, tokens []string, want ...int) {
					t.Helper()
					for _, token := range tokens {
						requests.Add(1)
						if a := g.get("/x", token); a.StatusCode != want[0] && a.StatusCode != want[len(want)-1] {
							t.Errorf("%s: %d, want %v", when, a.StatusCode, want)
						}
					}
				}
				check("full, a token", good[len(good)-10:], 200)
				check("full, a revoked token", revoked, 401)
				check("full, a token whose revocation was refused", unrevoked, 200, 401)

				if c.limit != nil {
					limitFiles(t, cmd.Process.Pid, ^uint64(0))
				} else if err := os.Remove(fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, filler)); err != nil {
					t.Fatal(err)
				}
				fresh := g.token("reader") // without a restart
				for _, token := range unrevoked {
					if a := g.revoke("reader", token); a.StatusCode != 200 {
						t.Errorf("with room again, a revocation: %d", a.StatusCode)
					}
				}
				revoked = append(revoked, unrevoked...)
				check("with room again, a revoked token", revoked, 401)
				check("with room again, a new token", []string{fresh}, 200)
				if c.limit == nil {
					return // the disk ends with the process
				}
				kill()
				g, _ = startGatewayProcess(t, options)
				check("after a kill, a revoked token", revoked, 401)
				check("after a kill, a good token", []string{fresh, good[len(good)-1]}, 200)
			})
		}
	}
}

// unusableFiles loads configurations whose files can't be used. Where the mode of a file is the
// reason, it starts gateways as an ordinary user.
func unusableFiles(t *testing.T, rounds int, requests *atomic.Int64) {
	// refused checks the error of a load.
	refused := func(t *testing.T, message, path string) {
		t.Helper()
		requests.Add(1)
		remedy := false
		for _, r := range []string{"store bbolt <path>", "move it away", "name the file itself"} {
			remedy = remedy || strings.Contains(message, r)
		}
		if !strings.Contains(message, path) || !remedy || strings.Contains(message, "panic") {
			t.Errorf("the error does not name the file and what to do: %q", message)
		}
	}
	place := func(t *testing.T, prepare func(folder, path string) error) (path string) {
		t.Helper()
		above := t.TempDir()
		folder := filepath.Join(above, "store")
		path = filepath.Join(folder, "tokens.db")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(above, 0o700); os.Chmod(folder, 0o700) })
		if err := prepare(folder, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for range rounds {
		g := startGateway(t, "store memory\n"+testClients, gatewaySite)
		token := g.token("reader")
		for name, prepare := range map[string]func(folder, path string) error{
			"a folder in place of the file": func(_, path string) error { return os.Mkdir(path, 0o700) },
			"a file in place of the folder": func(folder, _ string) error { os.Remove(folder); return os.WriteFile(folder, nil, 0o600) },
			"a link in place of the file":   func(_, path string) error { return os.Symlink("/etc/hostname", path) },
			"a device in place of the file": func(_, path string) error { return os.Symlink("/dev/full", path) },
			"another kind of file":          func(_, path string) error { return os.WriteFile(path, []byte(strings.Repeat("PK", 5000)), 0o600) },
		} {
			t.Run(name, func(t *testing.T) {
				path := place(t, prepare)
				err := g.load("store bbolt "+path+"\n"+testClients, gatewaySite)
				if err == nil {
					t.Fatal("it was loaded")
				}
				refused(t, err.Error(), path)
				if a := g.get("/x", token); a.StatusCode != 200 {
					t.Errorf("the previous configuration answers %d", a.StatusCode)
				}
			})
		}
		root := os.Getuid() == 0 // whom no file mode stops
		if root && !namespaces() {
			t.Log("modes not tried: the test runs as root, and this system does not allow becoming another user in a namespace")
			return
		}
		modes := map[string]func(folder, path string) error{
			"a folder that can't be written": func(folder, _ string) error { return os.Chmod(folder, 0o500) },
			"a folder that can't be read":    func(folder, _ string) error { return os.Chmod(folder, 0) },
			"a folder that can't be made":    func(folder, _ string) error { os.Remove(folder); return os.Chmod(filepath.Dir(folder), 0o500) },
			"a file that can't be written":   func(_, path string) error { return writeMode(path, 0o400) },
			"a file that others could read":  func(_, path string) error { return writeMode(path, 0o644) },
		}
		if root { // nobody else can give files away
			for _, mode := range []os.FileMode{0o600, 0o666} {
				modes[fmt.Sprintf("nobody's file of mode %o", mode)] = func(_, path string) error {
					if err := writeMode(path, mode); err != nil {
						return err
					}
					return os.Chown(path, 65534, 65534)
				}
			}
		}
		for name, prepare := range modes {
			t.Run(name, func(t *testing.T) {
				path := place(t, prepare)
				cmd := gatewayProcess("store bbolt " + path + "\n" + testClients)
				if root {
					ownNamespace(cmd, 1000, 0)
				}
				if name == "a file that others could read" { // it is made private, and used
					_, kill := runGatewayProcess(t, cmd)
					kill()
					if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
						t.Errorf("the file: %v, %v", info.Mode(), err)
					}
					return
				}
				out, err := cmd.Output()
				if err == nil || strings.Contains(string(out), "gateway at") {
					t.Fatalf("the gateway started:\n%s", out)
				}
				for line := range strings.Lines(string(out)) {
					if strings.Contains(line, "loading the configuration") {
						refused(t, line, path)
						return
					}
				}
				t.Errorf("no error:\n%s", out)
			})
		}
	}
}

func writeMode(path string, mode os.FileMode) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// folderRemoved takes the file away from a gateway that runs.
func folderRemoved(t *testing.T, rounds int, requests *atomic.Int64) {
	folder := filepath.Join(t.TempDir(), "store")
	store := "store bbolt " + filepath.Join(folder, "tokens.db") + "\n"
	g := startGateway(t, store+testClients, gatewaySite)
	for range rounds {
		good, cold, revoked := g.token("reader"), g.token("reader"), g.token("reader")
		check := func(when, token string, want int) {
			t.Helper()
			requests.Add(1)
			if a := g.get("/x", token); a.StatusCode != want {
				t.Errorf("%s: %d, want %d", when, a.StatusCode, want)
			}
		}
		check("before", good, 200)
		g.revoke("reader", revoked)
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		check("without the folder, a token in use", good, 200)
		check("without the folder, another token", cold, 200)
		check("without the folder, a new token", g.token("reader"), 200)
		if a := g.post("/oauth2/token/revoke", "reader", testSecret, url.Values{"token": {cold}}); a.StatusCode != 200 {
			t.Errorf("without the folder, a revocation: %d", a.StatusCode)
		}
		check("without the folder, a revoked token", cold, 401)
		if err := g.load(store+testClients, gatewaySite); err != nil {
			t.Errorf("a reload without the folder: %v", err)
		}
		check("after a reload, a revoked token", revoked, 401)
		g.restart(store+testClients, gatewaySite)
		for _, token := range []string{good, cold, revoked} {
			check("after a restart, an earlier token", token, 401)
		}
		check("after a restart, a new token", g.token("reader"), 200)
	}
}
