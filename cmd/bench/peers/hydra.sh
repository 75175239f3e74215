#!/bin/sh
# Ory Hydra over SQLite, built with the tag sqlite: its public endpoints on port 9002 and the
# administrative ones on 9003. The client reader has the secret of the variable CLIENT_SECRET. It runs
# until it is interrupted, and writes into the folder that it runs in.
set -eu
umask 077
export DSN="sqlite://$PWD/hydra.sqlite?_fk=true" LOG_LEVEL=warn SQA_OPT_OUT=true
export SECRETS_SYSTEM="${SECRETS_SYSTEM:-$(openssl rand -hex 16)}" URLS_SELF_ISSUER=http://127.0.0.1:9002/
export SERVE_PUBLIC_HOST=127.0.0.1 SERVE_PUBLIC_PORT=9002 SERVE_ADMIN_HOST=127.0.0.1 SERVE_ADMIN_PORT=9003

hydra migrate sql -e --yes >hydra.log 2>&1
hydra serve all --dev >>hydra.log 2>&1 &
trap 'kill $!' EXIT INT TERM
echo "process $!"
until curl -sf -o ready.json http://127.0.0.1:9003/health/ready; do sleep 0.2; done
printf '{"client_id":"reader","client_secret":"%s","grant_types":["client_credentials"],"scope":"read","token_endpoint_auth_method":"client_secret_basic"}' "$CLIENT_SECRET" |
	curl -s -o client.json -H 'Content-Type: application/json' -d @- http://127.0.0.1:9003/admin/clients
wait
