#!/bin/sh
# Makes JWTs for gateways that issue none: 100 lines in tokens, which are good for a day. It needs
# openssl and GNU coreutils, and writes into the folder that it runs in. With HS256 as its argument it
# signs with a shared key, otherwise with RS256.
set -eu
umask 077
b64() { basenc --base64url -w0 | tr -d =; }

case ${1:-RS256} in
RS256)
	[ -e private.pem ] || openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out private.pem
	openssl pkey -in private.pem -pubout -out public.pem
	n=$(openssl rsa -pubin -in public.pem -noout -modulus | cut -d= -f2 | basenc --base16 -d | b64)
	# For Apache, which wants the key in its configuration.
	printf 'OAuth2TokenVerify jwk "{\\"kty\\":\\"RSA\\",\\"alg\\":\\"RS256\\",\\"use\\":\\"sig\\",\\"n\\":\\"%s\\",\\"e\\":\\"AQAB\\"}" verify.exp=required\n' "$n" >verify.conf
	sign() { openssl dgst -sha256 -sign private.pem | b64; }
	;;
HS256)
	[ -e shared.key ] || openssl rand -base64 32 >shared.key
	key=$(base64 -d shared.key | basenc --base16 -w0)
	sign() { openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | b64; }
	;;
*)
	echo "usage: $0 [RS256|HS256]" >&2
	exit 2
	;;
esac

head=$(printf '{"alg":"%s","typ":"JWT"}' "${1:-RS256}" | b64)
until=$(($(date +%s) + 86400))
for i in $(seq 100); do
	text=$head.$(printf '{"iss":"https://issuer.example.com","aud":"orders","sub":"reader","scope":"read","exp":%d,"jti":"%d"}' "$until" "$i" | b64)
	printf '%s.%s\n' "$text" "$(printf %s "$text" | sign)"
done >tokens
