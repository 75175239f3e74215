// Verifies tokens with jose, as a program on Node does, and as the defaults of the library keep the
// keys. Each line of the input asks about a token at a certain time; each line of the output answers.
import { createInterface } from "node:readline";
import { createRemoteJWKSet, jwtVerify } from "jose";

const sets = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const { set, issuer, audience, typ, requiredClaims, token, now } = JSON.parse(line);
  Date.now = () => now; // it tells the library when to fetch the keys again
  if (!sets.has(set)) sets.set(set, createRemoteJWKSet(new URL(set)));
  let answer;
  try {
    const { payload, protectedHeader } = await jwtVerify(token, sets.get(set), {
      issuer,
      audience,
      typ,
      requiredClaims,
      currentDate: new Date(now),
    });
    answer = { payload, protectedHeader };
  } catch (error) {
    answer = { error: `${error.code}: ${error.message}` };
  }
  console.log(JSON.stringify(answer));
}
