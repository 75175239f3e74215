package caddyoauth_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// clientInput is what is done to a managed client, or with it.
type clientInput struct {
	op     string // put, remove, rotate, take (a secret away), end (its tokens), fetch or check
	client int
	// match is If-Match, * If-None-Match: *; empty is no condition.
	match    string
	scope    string // put
	disabled bool   // put
	secret   string // take, fetch
	token    string // check
}

// clientOutput is the answer.
type clientOutput struct {
	status              int
	etag, secret, token string
}

// clientState is what the model knows of a client. Lists are of words, with a space around each.
type clientState struct {
	etag     string // empty if there is no such client, ? if it is one that nobody was told
	scope    string
	disabled bool
	secrets  string
	tokens   string // those that are good, each with = and its scope
}

func (s clientState) count() int { return strings.Count(s.secrets, " ") - 1 }

// clientModel is a client that operators change while programs use it. All happens in an order that
// agrees with the clock.
var clientModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[int][]porcupine.Operation{}
		for _, op := range history {
			client := op.Input.(clientInput).client
			parts[client] = append(parts[client], op)
		}
		var all [][]porcupine.Operation
		for _, client := range slices.Sorted(maps.Keys(parts)) { // unexplained counts on the order
			all = append(all, parts[client])
		}
		return all
	},
	Init: func() any { return clientState{secrets: " ", tokens: " "} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(clientState), input.(clientInput), output.(clientOutput)
		there := s.etag != ""
		conflict := in.match == "*" && there || in.match != "" && in.match != "*" && in.match != s.etag
		next, want := s, http.StatusOK
		switch in.op {
		case "put":
			next.scope, next.disabled = in.scope, in.disabled
			switch {
			case conflict:
				want = http.StatusPreconditionFailed
			case !there:
				want, next.secrets = http.StatusCreated, " "
				if !in.disabled {
					next.secrets = " " + out.secret + " "
				}
			case !in.disabled && s.secrets == " ":
				want = http.StatusBadRequest // it could do nothing
			}
			if in.disabled {
				next.tokens = " "
			}
		case "remove":
			next = clientState{secrets: " ", tokens: " "}
			switch {
			case !there:
				want = http.StatusNotFound
			case conflict:
				want = http.StatusPreconditionFailed
			default:
				return out.status == http.StatusNoContent, next
			}
		case "rotate":
			next.secrets += out.secret + " "
			switch {
			case !there:
				want = http.StatusNotFound
			case conflict:
				want = http.StatusPreconditionFailed
			case s.count() == maxSecretsOfManaged:
				want = http.StatusConflict
			}
		case "take":
			next.secrets = strings.Replace(s.secrets, " "+in.secret+" ", " ", 1)
			switch {
			case !there:
				want = http.StatusNotFound
			case conflict:
				want = http.StatusPreconditionFailed
			case next.secrets == s.secrets:
				want = http.StatusNotFound
			case next.secrets == " " && !s.disabled:
				want = http.StatusBadRequest
			}
		case "end":
			next.tokens, next.etag = " ", "?"
			if !there {
				want = http.StatusNotFound
			}
			if want != http.StatusOK {
				next = s
			}
			return out.status == want, next
		case "fetch":
			if !there || s.disabled || !strings.Contains(s.secrets, " "+in.secret+" ") {
				return out.status == http.StatusUnauthorized, s
			}
			next.tokens += out.token + "=" + s.scope + " "
			return out.status == http.StatusOK, next
		case "check":
			_, rest, alive := strings.Cut(s.tokens, " "+in.token+"=")
			granted, _, _ := strings.Cut(rest, " ")
			switch {
			case !alive:
				want = http.StatusUnauthorized
			case granted != "read" || s.scope != "read":
				want = http.StatusForbidden
			}
			return out.status == want, s
		}
		// A change.
		if out.status != want {
			return false, s
		}
		if want >= http.StatusBadRequest {
			return true, s
		}
		next.etag = out.etag
		return out.etag != "" && out.etag != s.etag, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// Whatever operators and programs do at once, there is an order of it all, in agreement with the clock:
// a change is in force before it is answered, nobody's change is undone unseen, and a token that has
// ended stays dead.
func TestHistoryOfManagedClients(t *testing.T) {
	for _, v := range variants(t) {
		if !strings.Contains(v.name, "cache on") {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			config, address := withAdmin(t, caddyfileOf(v.options(t)+managedOptions, managedSite))
			a := admin{startCaddyfile(t, config), address}
			for attempt := range 3 {
				history, whole := clientHistory(t, a, attempt)
				if !whole {
					continue // a store on a busy machine took too long, so nobody can tell what it did
				}
				switch result, info := porcupine.CheckOperationsVerbose(clientModel, history, time.Minute); result {
				case porcupine.Illegal:
					t.Errorf("no order explains these answers; of each client, the last that can be explained and those behind:\n%s", unexplained(history, info))
				case porcupine.Unknown:
					t.Error("the history could not be judged in time")
				}
				return
			}
			t.Error("the store was too slow, three times")
		})
	}
}

// unexplained returns, of each client whose history has no order, the end of the longest part that has
// one, and what was done next.
func unexplained(history []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var text strings.Builder
	for i, part := range clientModel.Partition(history) {
		var longest []porcupine.Operation
		for _, partial := range info.PartialLinearizationsOperations()[i] {
			if len(partial) > len(longest) {
				longest = partial
			}
		}
		if len(longest) == len(part) {
			continue
		}
		left := slices.DeleteFunc(part, func(op porcupine.Operation) bool { return slices.Contains(longest, op) })
		slices.SortFunc(left, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		state := clientModel.Init()
		for j, op := range longest {
			_, state = clientModel.Step(state, op.Input, op.Output)
			if j >= len(longest)-6 {
				fmt.Fprintf(&text, "%v to %v: %s\n", time.Duration(op.Call), time.Duration(op.Return), clientModel.DescribeOperation(op.Input, op.Output))
			}
		}
		fmt.Fprintf(&text, "so it is %+v, which none of these explains:\n", state)
		for _, op := range left[:min(len(left), 6)] {
			fmt.Fprintf(&text, "%v to %v: %s\n", time.Duration(op.Call), time.Duration(op.Return), clientModel.DescribeOperation(op.Input, op.Output))
		}
	}
	return text.String()
}

// clientHistory has operators and programs do this and that with some clients for a while. It reports
// whether all changes were answered.
func clientHistory(t *testing.T, a admin, attempt int) (history []porcupine.Operation, whole bool) {
	const clients, workers = 3, 6
	steps := 150
	if longBattery {
		steps = 5000
	}
	type known struct{ etags, secrets, secretIDs, tokens []string }
	var (
		mu      sync.Mutex
		knows   [clients]known // the last few
		unknown atomic.Bool
		group   sync.WaitGroup
		begin   = time.Now()
	)
	remember := func(place *[]string, text string) {
		if text != "" {
			*place = append(*place, text)
			*place = (*place)[max(0, len(*place)-6):]
		}
	}
	for worker := range workers {
		random := rand.New(rand.NewPCG(uint64(worker), uint64(begin.UnixNano())))
		pick := func(of []string) string {
			if len(of) == 0 {
				return ""
			}
			return of[len(of)-1-random.IntN(random.IntN(len(of))+1)] // rather a late one
		}
		group.Go(func() {
			for range steps {
				client := random.IntN(clients)
				in := clientInput{client: client}
				mu.Lock()
				k := knows[client]
				which := random.IntN(max(1, len(k.secrets)))
				in.token = pick(k.tokens)
				etag, secret, secretID := pick(k.etags), "", ""
				if len(k.secrets) > 0 {
					secret, secretID = k.secrets[which], k.secretIDs[which]
				}
				mu.Unlock()
				if random.IntN(3) == 0 {
					in.match = etag
				}
				id := fmt.Sprintf("c%d-%d", attempt, client)
				path := "/oauth/clients/root/" + id
				var headers []string
				switch dice := random.IntN(100); {
				case dice < 50 && in.token != "":
					in.op, in.match = "check", ""
				case dice < 75 && secret != "":
					in.op, in.match, in.secret, in.token = "fetch", "", secret, ""
				case dice < 88 || secret == "" && dice < 92:
					in.token = ""
					in.op, in.scope, in.disabled = "put", []string{"read", "read", "write"}[random.IntN(3)], random.IntN(8) == 0
					if random.IntN(4) == 0 {
						in.match = "*"
					}
				case dice < 91:
					in.op, in.token = "remove", ""
				case dice < 95:
					in.op, in.token = "rotate", ""
				case dice < 98 && secret != "":
					in.op, in.secret, in.token = "take", secret, ""
				default:
					in.op, in.match, in.token = "end", "", ""
				}
				switch in.match {
				case "":
				case "*":
					headers = []string{"If-None-Match", "*"}
				default:
					headers = []string{"If-Match", in.match}
				}
				call := time.Since(begin)
				var res answer
				switch in.op {
				case "put":
					res = a.send("PUT", path, fmt.Sprintf(`{"scopes":[%[1]q],"default_scopes":[%[1]q],"disabled":%[2]t}`, in.scope, in.disabled), headers...)
				case "remove":
					res = a.send("DELETE", path, "", headers...)
				case "rotate":
					res = a.send("POST", path+"/secrets", "{}", headers...)
				case "take":
					res = a.send("DELETE", path+"/secrets/"+secretID, "", headers...)
				case "end":
					res = a.send("POST", "/oauth/tokens/revoke", fmt.Sprintf(`{"client":%q}`, id))
				case "fetch":
					res = a.post("/oauth2/access_token", id, in.secret, url.Values{"grant_type": {"client_credentials"}})
				case "check":
					res = a.get("/x", in.token)
				}
				out := clientOutput{status: res.StatusCode, etag: res.Header.Get("ETag")}
				returned := time.Since(begin)
				if res.StatusCode == http.StatusServiceUnavailable {
					if in.op != "fetch" && in.op != "check" {
						t.Logf("%s: %s", in.op, res.Body)
						unknown.Store(true)
						return
					}
					continue // it changed nothing
				}
				newest := ""
				if res.StatusCode < 300 && res.Body != "" && in.op != "check" {
					said := res.json(t)
					out.secret, _ = said["secret"].(string)
					out.token, _ = said["access_token"].(string)
					if all, _ := said["secrets"].([]any); len(all) > 0 {
						newest = fmt.Sprint(all[len(all)-1].(map[string]any)["id"])
					}
				}
				mu.Lock()
				remember(&knows[client].etags, out.etag)
				remember(&knows[client].tokens, out.token)
				if out.secret != "" {
					remember(&knows[client].secrets, out.secret)
					remember(&knows[client].secretIDs, newest)
				}
				history = append(history, porcupine.Operation{ClientId: worker, Input: in, Call: int64(call), Output: out, Return: int64(returned)})
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return history, !unknown.Load()
}

// What one gateway changes, another goes by within the bound of a revocation, whatever else happens.
// Nothing is lost that has not ended.
func TestHistoryOfManagedClientsInAFleet(t *testing.T) {
	options := at(redistest.Start(t).Addr) + managedOptions
	config, address := withAdmin(t, caddyfileOf(options, fleetSite))
	here := startCaddyfile(t, config)
	a := admin{here, address}
	there, _ := startGatewayProcess(t, options)
	here.linked()
	const clients = 4
	type life struct {
		token     string
		ended     time.Time // when what ended it was answered
		by        string
		refusedAt time.Time
	}
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			id := fmt.Sprintf("c%d", client)
			path := "/oauth/clients/root/" + id
			secret := ""
			var lives []*life
			random := rand.New(rand.NewPCG(uint64(client), 1))
			for range 25 {
				if secret == "" {
					secret = fmt.Sprint(a.must(201, "PUT", path, `{"scopes":["read"]}`).json(t)["secret"])
				}
				l := &life{token: here.tokenBy(id, secret)}
				for range random.IntN(4) {
					if got := there.get("/x", l.token).StatusCode; got == 401 {
						t.Errorf("a token of %s that has not ended gets %d at the other gateway", id, got)
					}
				}
				switch l.by = []string{"disable", "remove", "end"}[random.IntN(3)]; l.by {
				case "disable":
					a.must(200, "PUT", path, `{"scopes":["read"],"disabled":true}`)
					l.ended = time.Now()
					a.must(200, "PUT", path, `{"scopes":["read"]}`)
				case "remove":
					a.must(204, "DELETE", path, "")
					l.ended = time.Now()
					secret = ""
				case "end":
					a.must(200, "POST", "/oauth/tokens/revoke", fmt.Sprintf(`{"client":%q}`, id))
					l.ended = time.Now()
				}
				lives = append(lives, l)
				if got := here.get("/x", l.token).StatusCode; got == 200 {
					t.Errorf("a token of %s passes after %s", id, l.by)
				}
				// Old ones stay dead, at the other gateway from the bound on.
				for _, l := range lives[max(0, len(lives)-8):] {
					asked := time.Now()
					switch got := there.get("/x", l.token).StatusCode; {
					case got == 200 && asked.Sub(l.ended) > fleetBound:
						t.Errorf("a token of %s passes at the other gateway %v after %s", id, asked.Sub(l.ended), l.by)
					case got == 200 && !l.refusedAt.IsZero():
						t.Errorf("a token of %s passes at the other gateway, where it was refused before", id)
					case got == 401:
						l.refusedAt = asked
					}
				}
			}
			for _, l := range lives {
				there.refusedAfter(l.token, l.ended)
			}
		})
	}
	group.Wait()
}
