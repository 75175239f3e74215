// Calls a tool of an MCP server. It knows the server's URL, its own ID and secret, and which
// authorization server may have that secret. Everything else it finds out, beginning with a 401.
//
//   CLIENT_ID=… CLIENT_SECRET=… ISSUER=… node client.mjs [--trace] <url> <tool> [<note>]
import { ClientCredentialsProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const args = process.argv.slice(2);
const trace = args[0] === '--trace' && args.shift();
const [url, tool, note] = args;
const { CLIENT_ID, CLIENT_SECRET, ISSUER } = process.env;

const transport = new StreamableHTTPClientTransport(new URL(url), {
  authProvider: new ClientCredentialsProvider({ clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, expectedIssuer: ISSUER }),
  // As usual, but it can show what is sent.
  fetch: async (target, init) => {
    const response = await fetch(target, init);
    if (trace) {
      console.log(init?.method ?? 'GET', String(target), response.status);
    }
    return response;
  },
});

const client = new Client({ name: 'agent', version: '1.0.0' });
try {
  await client.connect(transport);
  const result = await client.callTool({ name: tool, arguments: note === undefined ? {} : { note } });
  console.log(result.content[0].text);
} catch (error) {
  console.log(String(error));
  process.exitCode = 1;
}
await client.close();
