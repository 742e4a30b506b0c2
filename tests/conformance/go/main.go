// The cases of tests/conformance from Go: one line each, PASS NAME, FAIL NAME REASON or SKIP NAME REASON.
// Arguments: name=value each, as of Addresses in server.py; only=NAME,NAME for some of the cases.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	mib        = 1 << 20
	limitBytes = 5 * mib
	floodBytes = 64 * 1024
)

var (
	at      = map[string]string{}
	names   []string
	cases   = map[string]func(){}
	counter atomic.Int64
	stream  = &grpc.StreamDesc{ServerStreams: true}
	bidi    = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
)

func define(name string, run func()) {
	names = append(names, name)
	cases[name] = run
}

// raw passes bytes through, both ways: messages are *[]byte.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}
func (raw) Name() string { return "proto" }

func fail(format string, values ...any) { panic(fmt.Sprintf(format, values...)) }

func expect[T comparable](found, wanted T, what string) {
	if found != wanted {
		fail("%s is %.200v, not %.200v", what, found, wanted)
	}
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func newName() string { return fmt.Sprintf("go-%d-%d", os.Getpid(), counter.Add(1)) }

func full(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/conformance.v1.Conformance/" + name
}

type connection struct{ *grpc.ClientConn }

func connect(address string, more ...grpc.DialOption) connection {
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)),
	}, more...)
	made, err := grpc.NewClient("passthrough:///"+address, options...)
	must(err)
	return connection{made}
}

func plain() connection { return connect(at["plain"]) }

func secured(withClient bool) grpc.DialOption {
	ca, err := os.ReadFile(at["directory"] + "/ca.pem")
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: pool}
	if withClient {
		pair, err := tls.LoadX509KeyPair(at["directory"]+"/client.pem", at["directory"]+"/client.key")
		must(err)
		config.Certificates = []tls.Certificate{pair}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

func within(timeout time.Duration) context.Context {
	made, cancel := context.WithTimeout(context.Background(), timeout)
	context.AfterFunc(made, cancel)
	return made
}

func minute() context.Context { return within(time.Minute) }

func (c connection) call(ctx context.Context, name, request string, options ...grpc.CallOption) (string, error) {
	in, out := []byte(request), []byte{}
	err := c.Invoke(ctx, full(name), &in, &out, options...)
	return string(out), err
}

func (c connection) ok(name, request string, options ...grpc.CallOption) string {
	answer, err := c.call(minute(), name, request, options...)
	must(err)
	return answer
}

func (c connection) refused(ctx context.Context, name, request string, code codes.Code, options ...grpc.CallOption) error {
	_, err := c.call(ctx, name, request, options...)
	expectCode(err, code)
	return err
}

func expectCode(err error, code codes.Code) {
	if status.Code(err) != code {
		fail("the code is %v (%v), not %v", status.Code(err), err, code)
	}
}

func (c connection) lives() { expect(c.ok("Echo", "still"), "still", "the echo") }

type call struct{ grpc.ClientStream }

func (c connection) stream(ctx context.Context, name, request string) call {
	made, err := c.NewStream(ctx, stream, full(name))
	must(err)
	in := []byte(request)
	must(made.SendMsg(&in))
	must(made.CloseSend())
	return call{made}
}

func (c connection) bidi(ctx context.Context, name string, options ...grpc.CallOption) call {
	made, err := c.NewStream(ctx, bidi, full(name), options...)
	must(err)
	return call{made}
}

func (s call) write(message string) {
	in := []byte(message)
	must(s.SendMsg(&in))
}

func (s call) read() string {
	var out []byte
	must(s.RecvMsg(&out))
	return string(out)
}

// rest reads to the end; how it ended is nil for OK.
func (s call) rest() (found []string, ended error) {
	for {
		var out []byte
		if err := s.RecvMsg(&out); err == io.EOF {
			return found, nil
		} else if err != nil {
			return found, err
		}
		found = append(found, string(out))
	}
}

func (s call) endsWith(count int) []string {
	found, err := s.rest()
	must(err)
	expect(len(found), count, "the number of messages")
	return found
}

func (c connection) wasCancelled(name string) {
	expect(strings.Fields(c.ok("AwaitEnd", name))[0], "cancelled", "the handler")
}

func until(condition func() bool, what string) {
	for range 3000 {
		if condition() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	fail("%s did not come true", what)
}

func withMetadata(pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(minute(), pairs...)
}

func run(name string) (why string) {
	defer func() {
		if problem := recover(); problem != nil {
			why = strings.ReplaceAll(fmt.Sprint(problem), "\n", " ")
		}
	}()
	cases[name]()
	return ""
}

func main() {
	for _, argument := range os.Args[1:] {
		name, value, _ := strings.Cut(argument, "=")
		at[name] = value
	}
	exit := 0
	for _, name := range names {
		if only := at["only"]; only != "" && !strings.Contains(","+only+",", ","+name+",") {
			continue
		}
		if why := run(name); why != "" {
			exit = 1
			fmt.Println("FAIL", name, why)
		} else {
			fmt.Println("PASS", name)
		}
	}
	os.Exit(exit)
}
