package verifiers

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
)

// The client of Kafka that most languages use, librdkafka, fetches a token by itself, with what it calls
// OIDC, and gets in with it at a broker that verifies it.
func TestKafkaClient(t *testing.T) {
	_, version := kafka.LibraryVersion()
	t.Log("librdkafka", version)
	f := startFleet(t, 1, "store memory\n"+realms())
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			realm := f.URL + "/oauth2/realms/root/realms/" + strings.ToLower(algorithm)
			b := startBroker(t, issued{issuer: realm, set: realm + "/jwks", audience: audience, algorithms: []string{algorithm}})
			client, err := kafka.NewAdminClient(&kafka.ConfigMap{
				"bootstrap.servers": b.Addr().String(), "security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc",
				"sasl.oauthbearer.token.endpoint.url": realm + "/access_token", "sasl.oauthbearer.client.id": "reader", "sasl.oauthbearer.client.secret": secret,
				"sasl.oauthbearer.scope": "read",
			})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			metadata, err := client.GetMetadata(nil, true, 10_000)
			refused := b.refused()
			if err != nil {
				t.Fatalf("%v; the broker refuses: %v", err, refused)
			}
			if len(metadata.Topics) != 1 || metadata.Topics["orders"].Topic != "orders" || refused != nil {
				t.Errorf("the client is told %v; the broker refuses: %v", metadata, refused)
			}
		})
	}
}

// broker is as much of a broker of Kafka as shows whether a client gets in: it authenticates, and
// tells which topics there are. It takes one token of the kind that it wants, by SASL/OAUTHBEARER
// (RFC 7628).
type broker struct {
	net.Listener
	want issued
	mu   sync.Mutex
	errs []error
}

func startBroker(t *testing.T, want issued) *broker {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{Listener: listener, want: want}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b.serve(conn)
			}()
		}
	}()
	return b
}

// refuse notes why the client does not get in.
func (b *broker) refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs = append(b.errs, err)
}

// refused returns all that was noted.
func (b *broker) refused() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.errs...)
}

// The requests that it knows, each in its oldest version that serves.
const (
	metadataRequest         = 3
	saslHandshakeRequest    = 17
	apiVersionsRequest      = 18
	saslAuthenticateRequest = 36

	unsupportedVersion = 35
	saslFailed         = 58
)

// serve answers the requests on a connection until the client ends it.
func (b *broker) serve(conn net.Conn) {
	authenticated := false
	for {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		var size uint32
		if err := binary.Read(conn, binary.BigEndian, &size); err != nil {
			return
		}
		if size < 10 || size > 1<<20 {
			b.refuse(fmt.Errorf("a request of %d bytes", size))
			return
		}
		request := make([]byte, size)
		if _, err := io.ReadFull(conn, request); err != nil {
			return
		}
		kind, version := binary.BigEndian.Uint16(request), binary.BigEndian.Uint16(request[2:])
		rest := request[10:] // behind the length of the client's name
		if name := int(binary.BigEndian.Uint16(request[8:])); name <= len(rest) {
			rest = rest[name:]
		}
		var a reply
		a.raw(request[4:8])
		switch {
		case kind == apiVersionsRequest:
			if version > 0 {
				a.int16(unsupportedVersion)
			} else {
				a.int16(0)
			}
			a.int32(4)
			for _, known := range [][2]int{{metadataRequest, 1}, {saslHandshakeRequest, 1}, {apiVersionsRequest, 0}, {saslAuthenticateRequest, 0}} {
				a.int16(known[0])
				a.int16(known[1]) // the least and the greatest version
				a.int16(known[1])
			}
		case kind == saslHandshakeRequest && version == 1:
			a.int16(0)
			a.int32(1)
			a.text("OAUTHBEARER")
		case kind == saslAuthenticateRequest && version == 0 && len(rest) > 4:
			err := b.authenticate(string(rest[4:]))
			if err != nil {
				b.refuse(err)
				a.int16(saslFailed)
				a.text("no")
			} else {
				authenticated = true
				a.int16(0)
				a.int16(-1) // no message
			}
			a.int32(0)
		case kind == metadataRequest && version == 1 && authenticated:
			host, port := "127.0.0.1", b.Addr().(*net.TCPAddr).Port
			a.int32(1)
			a.int32(0) // the ID of the broker
			a.text(host)
			a.int32(port)
			a.int16(-1) // no rack
			a.int32(0)  // the controller
			a.int32(1)
			a.int16(0)
			a.text("orders")
			a.raw([]byte{0}) // not internal
			a.int32(0)       // no partitions
		default:
			b.refuse(fmt.Errorf("request %d of version %d, authenticated: %v", kind, version, authenticated))
			return
		}
		// A client that is gone is noticed when the next request is read.
		conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(a.Len())), a.Bytes()...))
	}
}

// authenticate checks the client's response: the header of GS2, then the token among other members.
func (b *broker) authenticate(response string) error {
	head, rest, _ := strings.Cut(response, "\x01")
	token, ok := strings.CutPrefix(rest, "auth=Bearer ")
	if !strings.HasPrefix(head, "n,") || !ok {
		return fmt.Errorf("a response of another form: %q", response)
	}
	token, _, _ = strings.Cut(token, "\x01")
	set, err := jwk.Fetch(context.Background(), b.want.set)
	if err != nil {
		return err
	}
	read, err := jwxjwt.ParseString(token, jwxjwt.WithKeySet(set), jwxjwt.WithIssuer(b.want.issuer), jwxjwt.WithAudience(b.want.audience), jwxjwt.WithRequiredClaim("exp"))
	if err != nil {
		return err
	}
	if who, _ := read.Subject(); who != "reader" {
		return fmt.Errorf("the token is %s's", who)
	}
	return nil
}

// reply is an answer in the old form of the protocol.
type reply struct{ bytes.Buffer }

func (r *reply) raw(b []byte)     { r.Write(b) }
func (r *reply) int16(n int)      { binary.Write(r, binary.BigEndian, int16(n)) }
func (r *reply) int32(n int)      { binary.Write(r, binary.BigEndian, int32(n)) }
func (r *reply) text(text string) { r.int16(len(text)); r.WriteString(text) }
