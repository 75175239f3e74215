// A token endpoint and introspection by oidc-provider, which keeps tokens in memory: npm install
// oidc-provider, then CLIENT_SECRET=… node oidc-provider.mjs.
import Provider from 'oidc-provider';

const provider = new Provider('http://127.0.0.1:9001', {
  clients: [{
    client_id: 'reader',
    client_secret: process.env.CLIENT_SECRET,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    scope: 'read',
  }],
  scopes: ['read'],
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    devInteractions: { enabled: false },
  },
});
provider.listen(9001, '127.0.0.1');
