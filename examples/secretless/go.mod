module github.com/caddyoauth/gateway/examples/secretless

go 1.26.0
