// A backend that believes nobody but the gateway, whoever can reach it: it demands an assertion, a
// JWT by which the gateway says who is calling, signed for just this backend.
import { createServer } from 'node:http';
import { createRemoteJWKSet, jwtVerify } from 'jose';

const issuer = process.env.ISSUER ?? 'http://127.0.0.1:8190/oauth2';
// It fetches the keys again now and then, and when it meets one that it doesn't know.
const keys = createRemoteJWKSet(new URL(`${issuer}/jwks`));

// caller returns who sends a request, and throws an error if it doesn't come from the gateway.
async function caller(request) {
  const { payload } = await jwtVerify(request.headers['x-oauth-assertion'] ?? '', keys, {
    typ: 'oauth-assertion+jwt',
    algorithms: ['ES256'], // the realm's, and no other
    issuer,
    audience: 'https://node.internal.example.com', // what the gateway calls this backend
    requiredClaims: ['exp'],
  });
  return payload;
}

const listener = createServer(async (request, response) => {
  try {
    const { client_id, scope } = await caller(request);
    response.end(`Node knows you, ${client_id}: you may ${scope}.\n`);
  } catch (error) {
    console.log(`refused: ${error.message}`);
    response.writeHead(401).end('Come through the gateway.\n');
  }
});

listener.listen(Number(process.env.PORT ?? 8192), '127.0.0.1', () => {
  console.log(`listening on 127.0.0.1:${listener.address().port}`);
});
