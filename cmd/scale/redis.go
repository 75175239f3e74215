package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"golang.org/x/sync/errgroup"
)

// measureRedis fills in what things cost a Redis that nobody else uses. It writes records under names
// of their own, as gateways do, and deletes them, also if it fails or ctx ends. readers is how many
// connections read what another one deletes.
func measureRedis(ctx context.Context, addr string, c *costs, records, readers int) (err error) {
	prefix := "scale-" + strings.ToLower(rand.Text()) + ":"
	open := func(told *atomic.Int64) (rueidis.Client, error) {
		o := rueidis.ClientOption{InitAddress: []string{addr}}
		if strings.Contains(addr, "://") {
			var err error
			if o, err = rueidis.ParseURL(addr); err != nil {
				return nil, errors.New("this is no URL of a Redis") // the error has the URL, which may have a password
			}
		}
		o.ForceSingleClient, o.PipelineMultiplex, o.RingScaleEachConn = true, -1, 8
		o.ReadBufferEachConn, o.WriteBufferEachConn = 4<<10, 4<<10
		o.ClientTrackingOptions = []string{"OPTOUT"}
		o.OnInvalidations = func(messages []rueidis.RedisMessage) { told.Add(int64(len(messages))) }
		return rueidis.NewClient(o)
	}
	var told atomic.Int64
	writer, err := open(&told)
	if err != nil {
		return fmt.Errorf("connecting to Redis: %w", err)
	}
	defer writer.Close()
	look := func() (cpu, memory float64, err error) {
		info, err := writer.Do(ctx, writer.B().Info().Build()).ToString()
		if err != nil {
			return 0, 0, err
		}
		fields := make(map[string]string)
		for line := range strings.Lines(info) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			fields[name] = value
		}
		c.Redis.Version = fields["redis_version"]
		for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
			part, err := strconv.ParseFloat(fields[name], 64)
			if err != nil {
				return 0, 0, fmt.Errorf("this Redis does not say how much CPU it uses: %w", err)
			}
			cpu += part * 1e6
		}
		memory, err = strconv.ParseFloat(fields["used_memory"], 64)
		return cpu, memory, err
	}
	key := func(i int) string { return prefix + fmt.Sprintf("realm:root:token:1790000000000:%064x", i) }
	record := strings.Repeat("x", recordBytes)
	written := records
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(writer, written, key))
		}
	}()
	// each has clients do something with each record, as many as a gateway under load has under way.
	each := func(clients []rueidis.Client, command func(c rueidis.Client, i int) rueidis.Completed) (cpu, memory float64, err error) {
		cpuBefore, memoryBefore, err := look()
		if err != nil {
			return 0, 0, err
		}
		var group errgroup.Group
		for _, client := range clients {
			workers := max(1, 64/len(clients))
			for worker := range workers {
				group.Go(func() error {
					for i := worker; i < records && ctx.Err() == nil; i += workers {
						if err := client.Do(ctx, command(client, i)).Error(); err != nil {
							return err
						}
					}
					return ctx.Err()
				})
			}
		}
		if err := group.Wait(); err != nil {
			return 0, 0, err
		}
		cpuAfter, memoryAfter, err := look()
		n := float64(records * len(clients))
		return (cpuAfter - cpuBefore) / n, (memoryAfter - memoryBefore) / n, err
	}
	set := func(c rueidis.Client, i int) rueidis.Completed {
		return c.B().Set().Key(key(i)).Value(record).PxMilliseconds(3_600_000).Build()
	}
	get := func(c rueidis.Client, i int) rueidis.Completed { return c.B().Get().Key(key(i)).Build() }
	del := func(c rueidis.Client, i int) rueidis.Completed { return c.B().Del().Key(key(i)).Build() }

	alone := []rueidis.Client{writer}
	var many []rueidis.Client
	defer func() {
		for _, client := range many {
			client.Close()
		}
	}()
	if c.Redis.Set, c.Redis.Record, err = each(alone, set); err != nil {
		return err
	}
	if c.Redis.Get, c.Redis.Tracked, err = each(alone, get); err != nil {
		return err
	}
	if c.Redis.Delete, _, err = each(alone, del); err != nil {
		return err
	}
	for range readers {
		client, err := open(&told)
		if err != nil {
			return err
		}
		many = append(many, client)
	}
	records = max(1, records/readers)
	if _, _, err = each(alone, set); err != nil {
		return err
	}
	_, perReader, err := each(many, get)
	if err != nil {
		return err
	}
	// What the first reader of a record takes is more, and known.
	c.Redis.Reader = max(0, (perReader*float64(readers)-c.Redis.Tracked)/float64(readers-1))
	before := told.Load()
	ownBefore := ownCPU()
	withReaders, _, err := each(alone, del)
	if err != nil {
		return err
	}
	ownAfter := ownCPU()
	if heard := told.Load() - before; heard < int64(records*readers)*9/10 {
		return fmt.Errorf("only %d changes were heard of, of %d", heard, records*readers)
	}
	c.Redis.Tell = max(0, withReaders-c.Redis.Delete) / float64(readers)
	if ownAfter > ownBefore {
		// All readers are in this process. What it takes a gateway to forget a token comes on top of what it
		// takes to read the message, and is little beside it.
		c.Gateway.Hear = (ownAfter - ownBefore) / float64(records*readers)
	}
	return nil
}

// remove deletes the first n records, for at most half a minute. Whatever is left then expires.
func remove(writer rueidis.Client, n int, key func(i int) string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const step = 1000
	for i := 0; i < n; i += step {
		var keys []string
		for j := i; j < min(i+step, n); j++ {
			keys = append(keys, key(j))
		}
		if err := writer.Do(ctx, writer.B().Unlink().Key(keys...).Build()).Error(); err != nil {
			return fmt.Errorf("records are left in Redis for up to an hour: %w", err)
		}
	}
	return nil
}

// ownCPU returns the CPU time of this process in µs, or 0 if the system does not tell.
func ownCPU() float64 {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	var ticks float64 // of 10 ms
	for _, field := range fields[11:13] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks * 10_000
}

// recordBytes is what a record of a client with a few scopes and audiences takes.
const recordBytes = 100
