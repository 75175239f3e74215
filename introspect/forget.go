package introspect

import (
	"crypto/sha256"
	"time"
)

// forgotten is what one call of ForgetClient or ForgetSource made die: the entries of a
// source, or of a client in it, whose source was asked before that call.
type forgotten struct {
	source [sha256.Size]byte
	client string
	all    bool   // every client
	number uint64 // of the call: it counts against entries with a smaller Cache.forgets
	at     time.Duration
}

// maxForgotten bounds the calls that are remembered. They are looked through on every hit,
// for as long as entries from before them may be alive; beyond the bound everything is
// flushed instead.
const maxForgotten = 64

// ForgetClient makes the cache forget what the source of that name said of all tokens of a
// client. Once it has returned, no lookup that begins later sees what was found out before.
func (c *Cache) ForgetClient(name, clientID string) {
	c.forget(forgotten{source: sha256.Sum256([]byte(name)), client: clientID})
}

// ForgetSource makes the cache forget all that the source of that name said, likewise.
func (c *Cache) ForgetSource(name string) {
	c.forget(forgotten{source: sha256.Sum256([]byte(name)), all: true})
}

func (c *Cache) forget(f forgotten) {
	c.forgetting.Lock()
	defer c.forgetting.Unlock()
	f.number = c.forgets.Load() + 1
	f.at = c.cfg.Elapsed()
	list := []forgotten{f}
	if before := c.forgotten.Load(); before != nil {
		for _, old := range *before {
			// Entries from before it have died of age; those of the same are covered by f.
			if int64(f.at-old.at) < c.longest.Load() && !(old.source == f.source && (f.all || !old.all && old.client == f.client)) {
				list = append(list, old)
			}
		}
	}
	if len(list) > maxForgotten {
		c.Flush()
		list = nil
	}
	// The list first: whoever reads the new number has asked after this call began.
	c.forgotten.Store(&list)
	c.forgets.Store(f.number)
}

// forgot reports whether e is from before a call that was about it.
func (c *Cache) forgot(e *entry) bool {
	list := c.forgotten.Load()
	if list == nil {
		return false
	}
	for i := range *list {
		f := &(*list)[i]
		if e.forgets < f.number && f.source == [sha256.Size]byte(e.key[:sha256.Size]) && (f.all || f.client == e.facts.ClientID) {
			return true
		}
	}
	return false
}

// entriesLive notes that some entries may live so long.
func (c *Cache) entriesLive(life time.Duration) {
	for {
		longest := c.longest.Load()
		if int64(life) <= longest || c.longest.CompareAndSwap(longest, int64(life)) {
			return
		}
	}
}
