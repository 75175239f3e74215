// An MCP server: two tools over Streamable HTTP. It knows nothing of OAuth. The gateway in front of
// it lets in only programs that may call it, and says in headers who they are.
import { createServer } from 'node:http';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { z } from 'zod';

const notes = ['Water the plants.'];

// newServer makes the tools for one request. Callers share nothing but the notes.
function newServer() {
  const server = new McpServer({ name: 'notes', version: '1.0.0' });
  const text = text => ({ content: [{ type: 'text', text }] });

  server.registerTool('read_notes', { description: 'Returns all notes.' },
    ({ requestInfo: { headers } }) => text(`To ${headers['x-oauth-client-id']}: ${notes.join(' ')}`));

  // The gateway doesn't see which tool a request calls. What only some callers may do, the tool
  // checks itself.
  server.registerTool('add_note', { description: 'Adds a note.', inputSchema: { note: z.string() } },
    ({ note }, { requestInfo: { headers } }) => {
      if (!headers['x-oauth-scope'].split(' ').includes('notes.write')) {
        return { ...text('You may only read.'), isError: true };
      }
      notes.push(note);
      return text('Added.');
    });
  return server;
}

const listener = createServer(async (request, response) => {
  if (request.method !== 'POST') { // without sessions, there is no stream to open and none to end
    response.writeHead(405, { Allow: 'POST' }).end();
    return;
  }
  const server = newServer();
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  response.on('close', () => server.close());
  await server.connect(transport);
  await transport.handleRequest(request, response);
});

// On loopback, so that nobody comes to it but through the gateway.
listener.listen(Number(process.env.PORT ?? 8181), '127.0.0.1', () => {
  console.log(`listening on 127.0.0.1:${listener.address().port}`);
});
