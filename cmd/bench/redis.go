package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// redisCleaner connects to Redis and returns a function that deletes all keys with the prefix, and
// nothing else.
func redisCleaner(addr, prefix string) (clean func(), _ error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, ForceSingleClient: true})
	if err != nil {
		return nil, fmt.Errorf("connecting to Redis: %w", err)
	}
	return func() {
		defer client.Close()
		// This also runs after an interrupt, but not for ever: all but a few keys expire by themselves.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for cursor := uint64(0); ; {
			found, err := client.Do(ctx, client.B().Scan().Cursor(cursor).Match(prefix+"*").Count(1000).Build()).AsScanEntry()
			if err != nil {
				return
			}
			if len(found.Elements) > 0 {
				if err := client.Do(ctx, client.B().Unlink().Key(found.Elements...).Build()).Error(); err != nil {
					return
				}
			}
			if cursor = found.Cursor; cursor == 0 {
				return
			}
		}
	}, nil
}
