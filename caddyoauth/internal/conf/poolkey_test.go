package conf

import (
	"strings"
	"testing"
)

func TestPoolKeysDifferWhenSettingsDo(t *testing.T) {
	key := PoolKey("redis 127.0.0.1:6379", "hunter2", 1, []string{"a", "b"})
	if again := PoolKey("redis 127.0.0.1:6379", "hunter2", 1, []string{"a", "b"}); again != key {
		t.Errorf("the same settings have the keys %s and %s", key, again)
	}
	for _, other := range []string{
		PoolKey("redis 127.0.0.1:6380", "hunter2", 1, []string{"a", "b"}),
		PoolKey("redis 127.0.0.1:6379", "hunter3", 1, []string{"a", "b"}),
		PoolKey("redis 127.0.0.1:6379", "hunter2", 1, []string{"a b"}),
		PoolKey("redis 127.0.0.1:6379", "hunter2", 1, "a", "b"),
	} {
		if other == key {
			t.Errorf("different settings have the same key %s", key)
		}
	}
	if strings.Contains(key, "hunter2") {
		t.Errorf("the key %s, which is logged, holds a secret", key)
	}
}
