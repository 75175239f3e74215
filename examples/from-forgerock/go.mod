module github.com/caddyoauth/gateway/examples/from-forgerock

go 1.26.0
