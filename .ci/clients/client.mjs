// Fetches a token, calls with it, asks about it and revokes it, as a program on Node does by one of two
// libraries. The variable CLIENT says how, in JSON; the output says what came of it.
import { readFileSync } from "node:fs";
import { importPKCS8 } from "jose";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { Agent, fetch } from "undici";

const { library, issuer, id, method, secret, keyFile, algorithm, certFile, certKeyFile, caFile, scope, url, dpop } =
  JSON.parse(process.env.CLIENT);
const read = (file) => file && readFileSync(file, "utf8");

const dispatcher = new Agent({
  connect: { ca: read(caFile), cert: read(certFile), key: read(certKeyFile) },
});
const customFetch = (to, options) => fetch(to, { ...options, dispatcher });
const proofKeys = dpop && (await oauth.generateKeyPair(dpop));

function authentication(of) {
  switch (method) {
    case "client_secret_basic":
      return of.ClientSecretBasic(secret);
    case "client_secret_post":
      return of.ClientSecretPost(secret);
    case "private_key_jwt":
      return importPKCS8(read(keyFile), algorithm).then((key) => of.PrivateKeyJwt(key));
    default:
      return of.TlsClientAuth();
  }
}

async function byOpenidClient() {
  const config = await openid.discovery(
    new URL(issuer),
    id,
    { use_mtls_endpoint_aliases: Boolean(certFile) },
    await authentication(openid),
    { algorithm: "oauth2", [openid.customFetch]: customFetch },
  );
  const options = { DPoP: proofKeys && openid.getDPoPHandle(config, proofKeys) };
  const granted = await openid.clientCredentialsGrant(config, { scope }, options);
  const call = async () => {
    const answer = await openid
      .fetchProtectedResource(config, granted.access_token, new URL(url), "GET", null, new Headers(), options)
      .catch((error) => error.response ?? { status: 401, text: () => String(error) });
    return [answer.status, await answer.text()];
  };
  const called = await call();
  const again = await call();
  const introspected = await openid.tokenIntrospection(config, granted.access_token);
  await openid.tokenRevocation(config, granted.access_token);
  return { type: granted.token_type, called, again, introspected, revoked: (await call())[0] };
}

async function byOauth4webapi() {
  const at = new URL(issuer);
  const http = { [oauth.customFetch]: customFetch };
  const server = await oauth.processDiscoveryResponse(
    at,
    await oauth.discoveryRequest(at, { algorithm: "oauth2", ...http }),
  );
  const client = { client_id: id, use_mtls_endpoint_aliases: Boolean(certFile) };
  const authenticate = await authentication(oauth);
  const options = { ...http, DPoP: proofKeys && oauth.DPoP(client, proofKeys) };
  // A server that wants a nonce says so, and gives one.
  const withNonce = async (send) => {
    try {
      return await send();
    } catch (error) {
      if (!proofKeys || !oauth.isDPoPNonceError(error)) throw error;
      return send();
    }
  };
  const granted = await withNonce(async () =>
    oauth.processClientCredentialsResponse(
      server,
      client,
      await oauth.clientCredentialsGrantRequest(server, client, authenticate, new URLSearchParams({ scope }), options),
    ),
  );
  const call = async () => {
    try {
      const answer = await withNonce(() =>
        oauth.protectedResourceRequest(granted.access_token, "GET", new URL(url), new Headers(), null, options),
      );
      return [answer.status, await answer.text()];
    } catch (error) {
      return [error.response?.status ?? error.status, String(error)];
    }
  };
  const called = await call();
  const again = await call();
  const introspected = await oauth.processIntrospectionResponse(
    server,
    client,
    await oauth.introspectionRequest(server, client, authenticate, granted.access_token, http),
  );
  await oauth.processRevocationResponse(
    await oauth.revocationRequest(server, client, authenticate, granted.access_token, http),
  );
  return { type: granted.token_type, called, again, introspected, revoked: (await call())[0] };
}

const outcome = await (library === "openid-client" ? byOpenidClient() : byOauth4webapi());
console.log(JSON.stringify(outcome));
await dispatcher.close();
