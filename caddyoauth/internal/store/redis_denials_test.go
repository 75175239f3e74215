package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
	"github.com/caddyoauth/gateway/introspect"
)

// impatient makes a gateway wait only a second for one that vouches. It is for gateways that wait in vain: on a
// busy machine one that can vouch may take longer.
func impatient(cfg *RedisConfig) { cfg.vouchWait = time.Second }

func deny(t testing.TB, s oauth.KeyStore, keys ...oauth.Key) {
	t.Helper()
	for _, key := range keys {
		if err := s.Deny(ctx, key, "c"); err != nil {
			t.Fatal(err)
		}
	}
}

// questions returns how often a server was asked for a denial.
func questions(server *redistest.Server) int { return calls(server, "zscore") }

// calls returns how often a server was given a command.
func calls(server *redistest.Server, command string) (n int) {
	for line := range strings.Lines(server.CLI("info", "commandstats")) {
		if after, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			count, _, _ := strings.Cut(after, ",")
			n, _ = strconv.Atoi(count)
		}
	}
	return n
}

// judged waits until a store can judge tokens of an epoch, or knows that it is another one.
func judged(t testing.TB, r *Redis, epoch oauth.Epoch) (err error) {
	t.Helper()
	eventually(t, "the store can judge", func() bool {
		_, err = r.Denied(ctx, epoch, tokenOf("nobody's").Key)
		return err == nil || errors.Is(err, oauth.ErrOtherEpoch)
	})
	return err
}

// lasting starts a server that keeps what it was told to save, and nothing else.
func lasting(t testing.TB, args ...string) *redistest.Server {
	t.Helper()
	return redistest.Start(t, append([]string{"--dir", t.TempDir()}, args...)...)
}

// The first use of a token asks nobody, whoever revoked what.
func TestRedisFirstUseAsksNobody(t *testing.T) {
	server := redistest.Start(t)
	here, heardHere := redisAt(t, nil, server.Addr)
	there, heardThere := redisAt(t, nil, server.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, "x"), true)
	before := tokenOf("before").Key
	deny(t, here, before)
	wantDenied(t, there, epochA, before, true)
	flushes := func() int {
		_, ofHere := heardHere.told()
		_, ofThere := heardThere.told()
		return ofHere + ofThere
	}
	asked, rounds := 0, 0
	// If this machine stands still, a link is not sure for a while, and Redis has to be asked. So what counts is
	// a round within one lease of each.
	eventually(t, "the links were up all the time", func() bool {
		settled(t, "root", here, there)
		rounds++
		later, own := tokenOf(fmt.Sprint("later ", rounds)).Key, tokenOf(fmt.Sprint("own ", rounds)).Key
		flushed, leaseHere, leaseThere := flushes(), here.Lease(), there.Lease()
		asked = questions(server)
		wantDenied(t, there, epochA, before, true)
		wantDenied(t, there, epochA, later, false)
		deny(t, here, later)
		wantDenied(t, here, epochA, later, true)
		heardThere.tells(t, later.ID)
		wantDenied(t, there, epochA, later, true)
		deny(t, there, own)
		wantDenied(t, there, epochA, own, true)
		for i := range 100 {
			wantDenied(t, there, epochA, tokenOf(fmt.Sprint(i)).Key, false)
		}
		now := questions(server)
		if !leaseHere() || !leaseThere() || flushes() != flushed {
			return false
		}
		if now != asked {
			t.Errorf("Redis was asked: %d times before, %d now", asked, now)
		}
		return true
	})
	// The machine has slept. Until the next look nobody knows what was missed.
	eventually(t, "Redis is asked", func() bool {
		there.wall.Store(time.Now().UnixNano())
		wantDenied(t, there, epochA, tokenOf("good").Key, false)
		return questions(server) != asked
	})
}

// What is read from a replica may be old, so it is not believed.
func TestRedisReplicaJudgesNothing(t *testing.T) {
	master := redistest.Start(t)
	here, _ := redisAt(t, nil, master.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	replica := redistest.StartReplica(t, master.Addr)
	there, _ := redisAt(t, nil, replica.Addr)
	for what, err := range map[string]error{
		"asking": func() error { _, err := there.Denied(ctx, epochA, tokenOf("a").Key); return err }(), "denying": there.Deny(ctx, tokenOf("a").Key, "c"),
	} {
		if !errors.Is(err, oauth.ErrUnreachable) || !strings.Contains(err.Error(), "replica") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A store that begins to listen while others deny misses none, however slow its link is. Whatever
// was acknowledged a lease ago is denied from memory, and what is denied is never good again.
func TestRedisMissesNoDenial(t *testing.T) {
	server := redistest.Start(t)
	writer, _ := redisAt(t, nil, server.Addr)
	swapKeys(t, writer, "root", nil, keyringOf(epochA, ""), true)
	settled(t, "root", writer)
	var acknowledged sync.Map // oauth.Key → time.Time
	var stop atomic.Bool
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := 0; !stop.Load(); i++ {
				key := tokenOf(fmt.Sprint(w, " ", i)).Key
				if err := writer.Deny(ctx, key, "c"); err != nil {
					t.Error(err)
					return
				}
				acknowledged.Store(key, time.Now())
				wantDenied(t, writer, epochA, key, true)
				time.Sleep(time.Millisecond)
			}
		})
	}
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		way := redistest.StartProxy(t, server)
		opened := time.Now()
		r, _ := redisAt(t, nil, way.Addr)
		linked(t, r)
		way.Slow(round % 6 * 7)
		wantDenied(t, r, epochA, tokenOf("nobody's").Key, false)
		settled(t, "root", r)
		seen := make(map[oauth.Key]bool)
		judge := func() (late int) {
			acknowledged.Range(func(k, at any) bool {
				key := k.(oauth.Key)
				begun := time.Now()
				denied, err := r.Denied(ctx, epochA, key)
				switch {
				case err != nil:
					t.Errorf("round %d: %v", round, err)
				case !denied && seen[key]:
					t.Errorf("round %d: a token that was denied is good again", round)
				case !denied && (begun.Sub(at.(time.Time)) > leaseTime || at.(time.Time).Before(opened)):
					t.Errorf("round %d: a token is good %v after its denial", round, begun.Sub(at.(time.Time)))
				case !denied:
					late++
				}
				seen[key] = denied
				return !t.Failed()
			})
			return late
		}
		first := judge()
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		t.Logf("round %d: %d denials, of which %d were not heard yet; then %d", round, len(seen), first, judge())
		r.Close()
		way.Cut()
	}
	stop.Store(true)
	all.Wait()
}

// What is known counts only while news would arrive.
func TestRedisDeafToDenials(t *testing.T) {
	server := redistest.Start(t)
	way := redistest.StartProxy(t, server)
	here, _ := redisAt(t, nil, server.Addr)
	there, _ := redisAt(t, nil, way.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	key := tokenOf("a").Key
	wantDenied(t, there, epochA, key, false)
	settled(t, "root", there)
	way.Deafen()
	deny(t, here, key)
	acknowledged := time.Now()
	for {
		begun := time.Now()
		denied, err := there.Denied(ctx, epochA, key)
		if err != nil {
			break
		}
		if late := begun.Sub(acknowledged); denied || late > leaseTime {
			t.Fatalf("%v after the denial, which was not heard: %t", late, denied)
		}
		time.Sleep(10 * time.Millisecond)
	}
	way.Heal()
	linked(t, there)
	if err := judged(t, there, epochA); err != nil {
		t.Error(err)
	}
	wantDenied(t, there, epochA, key, true)
}

// An epoch that another gateway has begun, and an emptied Redis, count within moments.
func TestRedisForgetsAnEpoch(t *testing.T) {
	server := redistest.Start(t)
	here, _ := redisAt(t, nil, server.Addr)
	there, _ := redisAt(t, nil, server.Addr)
	key := tokenOf("a").Key
	other := func(what string, epoch oauth.Epoch) {
		t.Helper()
		eventually(t, what, func() bool {
			_, err := there.Denied(ctx, epoch, key)
			return errors.Is(err, oauth.ErrOtherEpoch)
		})
	}
	a, b := keyringOf(epochA, ""), keyringOf(epochB, "")
	swapKeys(t, here, "root", nil, a, true)
	deny(t, there, key)
	settled(t, "root", there)
	wantDenied(t, there, epochA, key, true)
	swapKeys(t, here, "root", a, b, true)
	other("the new epoch is known", epochA)
	// Denials are of tokens, and a token has one epoch. So it does not matter that they stay.
	wantDenied(t, there, epochB, tokenOf("b").Key, false)
	settled(t, "root", there)
	server.CLI("del", there.keysKey("root"))
	other("the keyring is gone", epochB)
	swapKeys(t, here, "root", nil, a, true)
	wantDenied(t, here, epochA, tokenOf("b").Key, false)
	settled(t, "root", here)
	server.CLI("flushall")
	if _, err := here.Denied(ctx, epochA, key); !errors.Is(err, oauth.ErrOtherEpoch) {
		eventually(t, "it is known that Redis is empty", func() bool {
			_, err := here.Denied(ctx, epochA, key)
			return errors.Is(err, oauth.ErrOtherEpoch)
		})
	}
	// Redis doesn't tell that databases have changed places. It shows at the next look.
	swapKeys(t, here, "root", nil, b, true)
	wantDenied(t, there, epochB, tokenOf("b").Key, false)
	settled(t, "root", there)
	server.CLI("swapdb", "0", "1")
	other("the other database is there", epochB)
}

// Beyond the bound nothing is remembered and Redis is asked. Once there is room again, it is not.
func TestRedisManyDenials(t *testing.T) {
	server := redistest.Start(t)
	few := func(cfg *RedisConfig) { cfg.maxDenials = 10 }
	tidy := func(cfg *RedisConfig) {
		few(cfg)
		cfg.tidyInterval = 20 * time.Millisecond
	}
	here, _ := redisAt(t, few, server.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	swapKeys(t, here, "second", nil, keyringOf(epochB, ""), true)
	keys := make([]oauth.Key, 12)
	for i := range keys {
		keys[i] = tokenOf(fmt.Sprint(i)).Key
	}
	deny(t, here, keys[:7]...)
	settled(t, "root", here)
	second := tokenOf("of the second").Key
	second.Realm = "second"
	wantDenied(t, here, epochB, second, false)
	settled(t, "second", here)
	deny(t, here, keys[7:]...)
	there, _ := redisAt(t, few, server.Addr)
	for _, r := range []*Redis{here, there} {
		asked := questions(server)
		for _, key := range keys {
			wantDenied(t, r, epochA, key, true)
		}
		wantDenied(t, r, epochA, tokenOf("good").Key, false)
		if questions(server) == asked {
			t.Error("Redis was not asked")
		}
		if n := r.denied.Load(); n != 0 {
			t.Errorf("%d denials are remembered, want none", n)
		}
	}
	settled(t, "second", here)
	deny(t, here, second)
	wantDenied(t, here, epochB, second, true)
	if n := here.denied.Load(); n != 1 {
		t.Errorf("%d denials are remembered, want that of the second realm", n)
	}
	// Most of them are over.
	for _, key := range keys[4:] {
		if err := here.client.Do(ctx, here.client.B().Zadd().Key(here.denialsKey("root")).ScoreMember().ScoreMember(1, string(key.ID[:])).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	later, _ := redisAt(t, tidy, server.Addr)
	wantDenied(t, later, epochA, keys[0], true)
	eventually(t, "what is over is gone", func() bool { return server.CLI("zcard", here.denialsKey("root")) == "4" })
	for _, key := range keys[4:10] { // now there are too many, and then not
		deny(t, later, key)
	}
	server.CLI("zremrangebyrank", here.denialsKey("root"), "4", "-1")
	settled(t, "root", later)
	if n := later.denied.Load(); n < 4 || n > 10 {
		t.Errorf("%d denials are remembered, want those that fit", n)
	}
}

// While the clock of a gateway is ahead, what it knows of denials is not forgotten: it would be missing
// when the clock is set back. What is over by the clock of Redis, too, is.
func TestRedisClockThatIsSetBack(t *testing.T) {
	server := redistest.Start(t)
	ahead := func(cfg *RedisConfig) { cfg.now = func() time.Time { return time.Now().Add(1000 * time.Hour) } }
	r, _ := redisAt(t, ahead, server.Addr)
	swapKeys(t, r, "root", nil, keyringOf(epochA, ""), true)
	key, old := tokenOf("a").Key, tokenOf("old").Key
	wantDenied(t, r, epochA, key, false)
	settled(t, "root", r)
	deny(t, r, key)
	r.learn("root", old.ID, 1)
	wantDenied(t, r, epochA, old, true)
	r.tidy()
	wantDenied(t, r, epochA, key, true)
	wantDenied(t, r, epochA, old, false)
}

// A Redis that begins to evict is found out while it runs.
func TestRedisBeginsToEvict(t *testing.T) {
	server := redistest.Start(t, "--maxmemory", "100mb")
	r, heard := redisAt(t, func(cfg *RedisConfig) { cfg.tidyInterval = 50 * time.Millisecond }, server.Addr)
	swapKeys(t, r, "root", nil, keyringOf(epochA, ""), true)
	wantDenied(t, r, epochA, tokenOf("a").Key, false)
	settled(t, "root", r)
	key := tokenOf("b").Key
	deny(t, r, key)
	server.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	server.CLI("del", r.denialsKey("root")) // as if it had been evicted
	eventually(t, "it is found out", func() bool {
		_, err := r.Denied(ctx, epochA, tokenOf("a").Key)
		return errors.Is(err, ErrEvicts)
	})
	eventually(t, "it is reported", func() (is bool) {
		heard.did(func() { is = len(heard.evicting) > 0 })
		return is
	})
	looked := calls(server, "time") // as it does whenever it has looked whether Redis evicts
	eventually(t, "it has looked again a few times", func() bool { return calls(server, "time") >= looked+4 })
	heard.did(func() {
		// A loss because this machine stood still is told of with another one, see wantStory.
		if n := len(heard.evicting); n > 1+2*heard.silences {
			t.Errorf("reported %q, want once", heard.evicting)
		}
	})
	server.CLI("config", "set", "maxmemory-policy", "noeviction")
	if err := judged(t, r, epochA); err != nil {
		t.Error(err)
	}
	wantDenied(t, r, epochA, key, true)
	eventually(t, "what was evicted is there again", func() bool { return server.CLI("zcard", r.denialsKey("root")) == "1" })
}

// What a Redis loses when it is killed comes back from the gateways that know it, and the epoch goes
// on: with snapshots, with a log that is behind, with one that is not.
func TestRedisIsKilled(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"snapshots", nil},
		{"a log, everysec", []string{"--appendonly", "yes", "--appendfsync", "everysec"}},
		{"a log, always", []string{"--appendonly", "yes", "--appendfsync", "always"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := lasting(t, c.args...)
			one, _ := redisAt(t, nil, server.Addr)
			two, heard := redisAt(t, nil, server.Addr)
			swapKeys(t, one, "root", nil, keyringOf(epochA, ""), true)
			before, after := tokenOf("before").Key, tokenOf("after").Key
			deny(t, one, before)
			wantDenied(t, two, epochA, before, true)
			settled(t, "root", one, two)
			server.CLI("save")
			deny(t, one, after)
			heard.tells(t, after.ID)
			one.Close() // the one that made the denial is gone as well
			server.Stop()
			eventually(t, "the loss is noticed", func() bool { return !two.Coherent() })
			if _, err := two.Denied(ctx, epochA, after); !errors.Is(err, oauth.ErrUnreachable) {
				t.Errorf("while Redis is away: %v", err)
			}
			server.Restart()
			fresh, _ := redisAt(t, nil, server.Addr) // knows nothing, but the other does
			for _, r := range []*Redis{two, fresh} {
				if err := judged(t, r, epochA); err != nil {
					t.Fatalf("the epoch has ended: %v", err)
				}
				wantDenied(t, r, epochA, before, true)
				wantDenied(t, r, epochA, after, true)
				wantDenied(t, r, epochA, tokenOf("good").Key, false)
			}
			settled(t, "root", two, fresh)
		})
	}
}

// A keyring that was replaced does not come back with an old copy of the data, and a key that was
// withdrawn with it. A gateway that has the last one puts it back. If nobody has, the epoch ends.
func TestRedisHasAnOldKeyring(t *testing.T) {
	first, second := keyringOf(epochA, "first"), keyringOf(epochA, "second")
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("a gateway has the last one: %t", known), func(t *testing.T) {
			t.Parallel()
			server := lasting(t)
			var patience func(*RedisConfig)
			if !known {
				patience = impatient
			}
			one, _ := redisAt(t, patience, server.Addr)
			two, _ := redisAt(t, patience, server.Addr)
			swapKeys(t, one, "root", nil, first, true)
			wantDenied(t, one, epochA, tokenOf("a").Key, false)
			hasKeys(t, two, "root", first)
			wantDenied(t, two, epochA, tokenOf("a").Key, false)
			settled(t, "root", one, two)
			server.CLI("save")
			swapKeys(t, one, "root", first, second, true)
			eventually(t, "the other knows that there is a later one", func() bool {
				return two.denialsOf("root").remembers(keyringID(first))
			})
			if known {
				hasKeys(t, two, "root", second)
			}
			one.Close()
			server.Stop()
			eventually(t, "the loss is noticed", func() bool { return !two.Coherent() })
			server.Restart()
			var last []byte
			eventually(t, "there is a keyring, or none", func() bool {
				keyring, err := two.Keys(ctx, "root")
				last = keyring
				return err == nil
			})
			fresh, _ := redisAt(t, patience, server.Addr)
			if !known {
				if last != nil || judged(t, two, epochA) == nil {
					t.Errorf("the epoch has not ended, and the keyring is %q", last)
				}
				return
			}
			if string(last) != string(second) {
				t.Errorf("the keyring is %q, want the second", last)
			}
			if err := judged(t, fresh, epochA); err != nil {
				t.Error(err)
			}
			hasKeys(t, fresh, "root", second)
			third := keyringOf(epochA, "third")
			swapKeys(t, fresh, "root", second, third, true)
			eventually(t, "the third is known everywhere", func() bool {
				keyring, err := two.Keys(ctx, "root")
				return err == nil && string(keyring) == string(third)
			})
		})
	}
}

// No token of an epoch is good at the gateway that has ended it, also before that hears of it.
func TestRedisEndsAnEpochAtOnce(t *testing.T) {
	server := redistest.Start(t)
	r, _ := redisAt(t, nil, server.Addr)
	swapKeys(t, r, "root", nil, keyringOf(epochA, ""), true)
	for range 20 {
		for _, epochs := range [][2]oauth.Epoch{{epochA, epochB}, {epochB, epochA}} {
			wantDenied(t, r, epochs[0], tokenOf("a").Key, false)
			settled(t, "root", r)
			swapKeys(t, r, "root", keyringOf(epochs[0], ""), keyringOf(epochs[1], ""), true)
			if _, err := r.Denied(ctx, epochs[0], tokenOf("a").Key); !errors.Is(err, oauth.ErrOtherEpoch) {
				t.Fatalf("after the epoch has ended: %v, want ErrOtherEpoch", err)
			}
		}
	}
}

// A gateway that reads the denials of a realm while another one replaces its keyring does not take the
// one that it has read for an old copy.
func TestRedisKeyringIsReplacedMeanwhile(t *testing.T) {
	server := redistest.Start(t)
	writer, _ := redisAt(t, nil, server.Addr)
	name := func(i int) []byte { return keyringOf(epochA, strconv.Itoa(i)) }
	swapKeys(t, writer, "root", nil, name(0), true)
	settled(t, "root", writer)
	var stop atomic.Bool
	var replaced atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; !stop.Load(); i++ {
			swapped, err := writer.SwapKeys(ctx, "root", name(i), name(i+1))
			if err != nil || !swapped {
				t.Errorf("replacing keyring %d: %t, %v", i, swapped, err)
				return
			}
			replaced.Add(1)
			time.Sleep(10 * time.Millisecond) // longer than it takes to read the denials
		}
	})
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	var opened []*Redis
	for round := range rounds {
		way := redistest.StartProxy(t, server)
		r, _ := redisAt(t, nil, way.Addr)
		linked(t, r)
		way.Slow(round * 3)
		for range 20 {
			before := replaced.Load()
			wantDenied(t, r, epochA, tokenOf("nobody's").Key, false)
			eventually(t, "the keyring is replaced once more", func() bool { return replaced.Load() > before })
		}
		way.Heal()
		opened = append(opened, r)
	}
	stop.Store(true)
	all.Wait()
	settled(t, "root", append(opened, writer)...)
}

// At a server that nobody vouches for, no keyring is replaced by another one of its epoch: it may not be
// the last one.
func TestRedisReplacesNoOldKeyring(t *testing.T) {
	server := lasting(t)
	one, _ := redisAt(t, impatient, server.Addr)
	first, second := keyringOf(epochA, "first"), keyringOf(epochA, "second")
	swapKeys(t, one, "root", nil, first, true)
	server.CLI("save")
	one.Close()
	server.Stop()
	server.Restart()
	two, _ := redisAt(t, nil, server.Addr)
	if swapped, err := two.SwapKeys(ctx, "root", first, second); swapped || !errors.Is(err, oauth.ErrUnreachable) {
		t.Errorf("swapped: %t, %v", swapped, err)
	}
	hasKeys(t, two, "root", first)
	swapKeys(t, two, "root", first, keyringOf(epochB, ""), true) // another epoch may begin
	if err := judged(t, two, epochB); err != nil {
		t.Error(err)
	}
}

// If nobody knows what a Redis has lost, or may have lost, its epoch ends. A gateway alone may be
// restarted, and so may a Redis without anything to lose.
func TestRedisIsKilledWithAllGateways(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{{"snapshots", nil}, {"a log", []string{"--appendonly", "yes", "--appendfsync", "always"}}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := lasting(t, c.args...)
			one, _ := redisAt(t, impatient, server.Addr)
			swapKeys(t, one, "root", nil, keyringOf(epochA, ""), true)
			wantDenied(t, one, epochA, tokenOf("a").Key, false)
			server.CLI("save")
			deny(t, one, tokenOf("a").Key)
			one.Close()
			two, _ := redisAt(t, impatient, server.Addr)
			wantDenied(t, two, epochA, tokenOf("a").Key, true) // at once: it is the same Redis
			two.Close()
			server.Stop()
			server.Restart()
			three, heard := redisAt(t, impatient, server.Addr)
			begun := time.Now()
			if err := judged(t, three, epochA); !errors.Is(err, oauth.ErrOtherEpoch) {
				t.Errorf("%v, want ErrOtherEpoch", err)
			}
			waited := time.Since(begun)
			if waited < time.Second {
				t.Errorf("nobody had time to vouch: it took %v", waited)
			}
			// If the link was lost because this machine stood still, it began anew, at most once for each of
			// its two connections.
			story, _ := heard.told()
			if n, most := calls(server, "set"), int(waited/pingInterval)+1+2*strings.Count(story, "lost"); n < 1 || n > most {
				t.Errorf("others were asked %d times within %v, want each half second", n, waited)
			}
			heard.did(func() {
				if len(heard.ended) != 1 || heard.ended[0] != "root" || heard.changes == 0 {
					t.Errorf("reported %q, and %d changes", heard.ended, heard.changes)
				}
			})
			hasKeys(t, three, "root", nil)
			swapKeys(t, three, "root", nil, keyringOf(epochB, ""), true)
			wantDenied(t, three, epochB, tokenOf("b").Key, false)
			settled(t, "root", three)
		})
	}
}

// A gateway that had lost the link long before can't know what was revoked meanwhile.
func TestRedisLongAwayVouchesForNothing(t *testing.T) {
	server := lasting(t)
	way := redistest.StartProxy(t, server)
	here, _ := redisAt(t, nil, server.Addr)
	away, _ := redisAt(t, func(cfg *RedisConfig) {
		impatient(cfg)
		cfg.vouchGap = 2 * time.Second
	}, way.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	wantDenied(t, away, epochA, tokenOf("a").Key, false)
	settled(t, "root", away)
	server.CLI("save")
	way.Cut()
	eventually(t, "the loss is noticed", func() bool { return !away.Coherent() })
	deny(t, here, tokenOf("a").Key)
	here.Close()
	server.Stop()
	time.Sleep(2 * time.Second)
	server.Restart()
	way.Heal()
	if err := judged(t, away, epochA); !errors.Is(err, oauth.ErrOtherEpoch) {
		t.Errorf("%v, want ErrOtherEpoch", err)
	}
}

// A server that has an old copy of the data, by way of replication, is told from the one of before
// even though it is the same process.
func TestRedisIsRestoredByReplication(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("a gateway knows better: %t", known), func(t *testing.T) {
			t.Parallel()
			server := lasting(t)
			old := redistest.StartReplica(t, server.Addr)
			here, _ := redisAt(t, nil, server.Addr)
			swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
			key := tokenOf("a").Key
			wantDenied(t, here, epochA, key, false)
			settled(t, "root", here)
			eventually(t, "the replica has the keyring", func() bool { return old.CLI("exists", here.serverKey("root")) == "1" })
			old.CLI("replicaof", "no", "one")
			deny(t, here, key)
			want, patience := error(nil), func(*RedisConfig) {}
			if !known {
				want, patience = oauth.ErrOtherEpoch, impatient
				here.Close()
			}
			replicate(t, server, old)
			server.CLI("replicaof", "no", "one")
			fresh, _ := redisAt(t, patience, server.Addr)
			if err := judged(t, fresh, epochA); !errors.Is(err, want) {
				t.Fatalf("%v, want %v", err, want)
			}
			if known {
				wantDenied(t, fresh, epochA, key, true)
				if err := judged(t, here, epochA); err != nil {
					t.Error(err)
				}
				wantDenied(t, here, epochA, key, true)
			}
		})
	}
}

// replicate makes a server the replica of another one, and waits until it has its data.
func replicate(t testing.TB, s, of *redistest.Server) {
	t.Helper()
	host, port, _ := strings.Cut(of.Addr, ":")
	s.CLI("replicaof", host, port)
	eventually(t, "the data has been copied", func() bool {
		return strings.Contains(s.CLI("info", "replication"), "master_link_status:up")
	})
}

// A server that gets its first replica has another name afterwards. It has lost nothing, and the
// gateways that run say so to one that starts.
func TestRedisGetsAReplica(t *testing.T) {
	server := lasting(t)
	here, _ := redisAt(t, nil, server.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	deny(t, here, tokenOf("a").Key)
	settled(t, "root", here)
	before := server.CLI("get", here.serverKey("root"))
	redistest.StartReplica(t, server.Addr)
	fresh, heard := redisAt(t, nil, server.Addr)
	if err := judged(t, fresh, epochA); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, fresh, epochA, tokenOf("a").Key, true)
	heard.did(func() {
		if len(heard.ended) != 0 {
			t.Error("the epoch has ended")
		}
	})
	if server.CLI("get", here.serverKey("root")) == before {
		t.Error("the server has the same name: the test proves nothing")
	}
}

// A gateway that has listened since before the server got another name believes it in the next epoch, too.
func TestRedisBeginsAnEpochUnderAnotherName(t *testing.T) {
	server := lasting(t)
	here, _ := redisAt(t, impatient, server.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	wantDenied(t, here, epochA, tokenOf("a").Key, false)
	settled(t, "root", here)
	redistest.StartReplica(t, server.Addr)
	server.CLI("del", here.keysKey("root")) // as whoever wants all tokens to end
	eventually(t, "it is noticed", func() bool {
		_, err := here.Denied(ctx, epochA, tokenOf("a").Key)
		return errors.Is(err, oauth.ErrOtherEpoch)
	})
	swapKeys(t, here, "root", nil, keyringOf(epochB, ""), true)
	if err := judged(t, here, epochB); err != nil {
		t.Error(err)
	}
}

// A gateway that can't vouch waits for others. While it is cut off it doesn't, so it ends no epoch as it
// comes back: others may have been cut off as well.
func TestRedisWaitsAnewForOthers(t *testing.T) {
	t.Parallel()
	const wait = 3 * time.Second
	server := lasting(t)
	here, there := redistest.StartProxy(t, server), redistest.StartProxy(t, server)
	knows, _ := redisAt(t, nil, there.Addr)
	swapKeys(t, knows, "root", nil, keyringOf(epochA, ""), true)
	key := tokenOf("a").Key
	deny(t, knows, key)
	settled(t, "root", knows)
	server.CLI("save")
	server.Stop()
	there.Cut()
	server.Restart()
	fresh, heard := redisAt(t, func(cfg *RedisConfig) { cfg.vouchWait = wait }, here.Addr)
	asks := func() {
		t.Helper()
		before := calls(server, "set")
		eventually(t, "it asks whether others can vouch", func() bool {
			_, err := fresh.Denied(ctx, epochA, key)
			return errors.Is(err, oauth.ErrOtherEpoch) || calls(server, "set") > before
		})
	}
	asks()
	here.Cut()
	time.Sleep(wait)
	here.Heal()
	asks()
	there.Heal()
	if err := judged(t, fresh, epochA); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, fresh, epochA, key, true)
	heard.did(func() {
		if len(heard.ended) != 0 {
			t.Error("the epoch has ended")
		}
	})
}

// A master that has just been promoted may refuse all writes until it has a replica again, so nobody can vouch
// for it. Whoever knows all denials judges tokens meanwhile, and vouches once it can, however long that took.
// A gateway that has started meanwhile lets it.
func TestRedisRefusesWritesForLong(t *testing.T) {
	server := lasting(t, "--min-replicas-to-write", "1")
	refuse := func(replicas string) { server.CLI("config", "set", "min-replicas-to-write", replicas) }
	refuse("0")
	here, heardHere := redisAt(t, nil, server.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	before, after := tokenOf("before").Key, tokenOf("after").Key
	deny(t, here, before)
	settled(t, "root", here)
	server.CLI("zadd", here.denialsKey("root"), "1", strings.Repeat("x", len(before.ID))) // it is over
	server.CLI("save")
	deny(t, here, after)
	server.Stop()
	eventually(t, "the loss is noticed", func() bool { return !here.Coherent() })
	server.Restart()
	if err := judged(t, here, epochA); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, here, epochA, before, true)
	wantDenied(t, here, epochA, after, true)
	wantDenied(t, here, epochA, tokenOf("good").Key, false)
	fresh, heardThere := redisAt(t, impatient, server.Addr)
	linked(t, fresh)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := fresh.Denied(ctx, epochA, after); !errors.Is(err, oauth.ErrUnreachable) {
			t.Fatalf("without anybody who vouches: %v", err)
		}
	}
	d := here.denialsOf("root")
	d.mu.Lock() // an hour passes
	d.wholeAt = d.wholeAt.Add(-time.Hour)
	d.mu.Unlock()
	wantDenied(t, here, epochA, tokenOf("good").Key, false)
	refuse("0")
	for _, r := range []*Redis{here, fresh} {
		if err := judged(t, r, epochA); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, r, epochA, after, true)
		settled(t, "root", r)
	}
	for _, h := range []*heard{heardHere, heardThere} {
		h.did(func() {
			if len(h.ended) != 0 {
				t.Error("the epoch has ended")
			}
		})
	}
}

// Sentinels appoint a master that has not heard of the last denials. Gateways that know them add them,
// and one that starts meanwhile waits for that.
func TestRedisSentinelAndDenials(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	way := redistest.StartProxy(t, master) // for the replication
	replica := redistest.StartReplica(t, way.Addr)
	sentinel := redistest.StartSentinel(t, master)
	eventually(t, "the Sentinel knows the replica", func() bool {
		return strings.Contains(sentinel.CLI("sentinel", "replicas", "main"), "slave-priority")
	})
	sentinels := func(cfg *RedisConfig) { cfg.SentinelMaster = "main" }
	here, _ := redisAt(t, sentinels, sentinel.Addr)
	swapKeys(t, here, "root", nil, keyringOf(epochA, ""), true)
	before, after := tokenOf("before").Key, tokenOf("after").Key
	deny(t, here, before)
	settled(t, "root", here)
	eventually(t, "the replica has the first", func() bool { return replica.CLI("zcard", here.denialsKey("root")) == "1" })
	way.Swallow()
	deny(t, here, after)
	if replica.CLI("zcard", here.denialsKey("root")) != "1" {
		t.Fatal("the replica has heard of the denial: the test proves nothing")
	}
	master.Stop()
	eventually(t, "the loss is noticed", func() bool { return !here.Coherent() })
	// The Sentinel knows; the replica ends all connections when it is promoted.
	_, port, _ := strings.Cut(replica.Addr, ":")
	for deadline := time.Now().Add(40 * time.Second); !strings.Contains(sentinel.CLI("sentinel", "get-master-addr-by-name", "main"), port); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the Sentinel does not fail over")
		}
	}
	fresh, _ := redisAt(t, sentinels, sentinel.Addr)
	for _, r := range []*Redis{here, fresh} {
		if err := judged(t, r, epochA); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, r, epochA, before, true)
		wantDenied(t, r, epochA, after, true)
	}
}

// The battery of faults for denials: while gateways deny and ask, one of them begins anew again and
// again, and Redis loses connections, goes silent, is cut off, and is killed and comes back with an old copy
// of its data. Nothing that was acknowledged is good again, at the gateway that heard of it from the
// moment that it did, and at the others after the bound. The epoch never ends, since somebody always
// knows.
func TestBatteryDenials(t *testing.T) {
	t.Parallel()
	rounds := 6
	if longBattery {
		rounds = 150
	} else if testing.Short() {
		rounds = 3
	}
	server := lasting(t)
	way := redistest.StartProxy(t, server)
	stays, _ := redisAt(t, nil, server.Addr)
	cut, _ := redisAt(t, nil, way.Addr)
	swapKeys(t, stays, "root", nil, keyringOf(epochA, ""), true)
	settled(t, "root", func() *Redis { wantDenied(t, stays, epochA, tokenOf("x").Key, false); return stays }())
	settled(t, "root", func() *Redis { wantDenied(t, cut, epochA, tokenOf("x").Key, false); return cut }())
	server.CLI("save")
	var comes atomic.Pointer[Redis]
	begin := func() {
		r, _ := redisAt(t, nil, server.Addr)
		if before := comes.Swap(r); before != nil {
			before.Close()
		}
	}
	begin()

	type fact struct {
		key     oauth.Key
		at      time.Time
		by      *Redis
		mu      sync.Mutex
		denied  map[*Redis]bool
		unknown bool // the denial failed, so it may or may not count
	}
	var (
		mu    sync.Mutex
		facts []*fact
		stop  atomic.Bool
		all   sync.WaitGroup
		asked atomic.Int64
		wrote atomic.Int64
	)
	for w := range 2 {
		all.Go(func() {
			for i := 0; !stop.Load(); i++ {
				r := []*Redis{stays, cut, comes.Load()}[i%3]
				f := &fact{key: tokenOf(fmt.Sprint("battery ", w, " ", i)).Key, by: r, denied: make(map[*Redis]bool)}
				f.unknown = r.Deny(ctx, f.key, "c") != nil
				f.at = time.Now()
				if !f.unknown {
					wrote.Add(1)
				}
				mu.Lock()
				facts = append(facts, f)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for i := 0; !stop.Load(); i++ {
				mu.Lock()
				if len(facts) == 0 {
					mu.Unlock()
					continue
				}
				f := facts[rand.IntN(len(facts))]
				mu.Unlock()
				r := []*Redis{stays, cut, comes.Load()}[i%3]
				f.mu.Lock()
				was := f.denied[r]
				f.mu.Unlock()
				begun := time.Now()
				denied, err := r.Denied(ctx, epochA, f.key)
				asked.Add(1)
				switch late := begun.Sub(f.at); {
				case errors.Is(err, oauth.ErrOtherEpoch):
					t.Error("the epoch has ended")
					return
				case err != nil:
				case denied:
					f.mu.Lock()
					f.denied[r] = true
					f.mu.Unlock()
				case was:
					t.Error("a token that was denied is good again")
					return
				case !f.unknown && (r == f.by || late > leaseTime):
					t.Errorf("a token is good %v after its denial, at the gateway that denied it: %t", late, r == f.by)
					return
				}
			}
		})
	}
	faults := []struct {
		name string
		do   func()
	}{
		{"connections are killed", func() { server.CLI("client", "kill", "type", "normal") }},
		{"Redis is silent", func() { server.Pause(); time.Sleep(700 * time.Millisecond); server.Resume() }},
		{"one is cut off", func() { way.Cut(); time.Sleep(300 * time.Millisecond); way.Heal() }},
		{"one is deaf", func() { way.Deafen(); time.Sleep(2500 * time.Millisecond); way.Heal() }},
		{"one begins anew", begin},
		{"Redis is killed and has an old copy", func() { server.Stop(); time.Sleep(200 * time.Millisecond); server.Restart() }},
		{"Redis is killed with a gateway", func() { server.Stop(); begin(); server.Restart() }},
		{"a snapshot", func() { server.CLI("save") }},
	}
	for round := range rounds {
		f := faults[rand.IntN(len(faults))]
		if round < 2 {
			f = faults[5+round] // these at least
		}
		f.do()
		for _, r := range []*Redis{stays, cut} {
			linked(t, r)
			if err := judged(t, r, epochA); err != nil {
				t.Errorf("after round %d, %s: %v", round, f.name, err)
			}
		}
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		if t.Failed() {
			t.Errorf("in round %d, %s", round, f.name)
			break
		}
	}
	stop.Store(true)
	all.Wait()
	mu.Lock()
	defer mu.Unlock()
	var id introspect.TokenID
	for _, r := range []*Redis{stays, cut} {
		if err := judged(t, r, epochA); err != nil {
			t.Fatal(err)
		}
		settled(t, "root", r)
		// Its news may be on the way still, for as long as the bound allows. They come before the answer to
		// this, which comes over the same connection.
		if err := r.Deny(ctx, tokenOf("last").Key, "c"); err != nil {
			t.Fatal(err)
		}
		for _, f := range facts {
			if !f.unknown {
				wantDenied(t, r, epochA, f.key, true)
			}
		}
		wantDenied(t, r, epochA, oauth.Key{Realm: "root", ID: id}, false)
	}
	t.Logf("battery: %d faults, %d denials, %d questions", rounds, wrote.Load(), asked.Load())
}
