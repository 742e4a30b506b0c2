package main

// Time and cancellation, compression, limits and flow control, the life of a connection, TLS, the broker.

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// unknown is a compressor that no server has; it does nothing.
type unknown struct{}
type unclosed struct{ io.Writer }

func (unclosed) Close() error                                { return nil }
func (unknown) Compress(w io.Writer) (io.WriteCloser, error) { return unclosed{w}, nil }
func (unknown) Decompress(r io.Reader) (io.Reader, error)    { return r, nil }
func (unknown) Name() string                                 { return "unheard-of" }
func serving(answer string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	response := &grpc_health_v1.HealthCheckResponse{}
	must(proto.Unmarshal([]byte(answer), response))
	return response.Status
}

func encoded(message proto.Message) string {
	out, err := proto.Marshal(message)
	must(err)
	return string(out)
}

func init() {
	encoding.RegisterCompressor(unknown{})

	define("deadline", func() {
		channel, one, two := plain(), newName(), newName()
		channel.lives()
		channel.refused(within(time.Second/2), "Hang", one, codes.DeadlineExceeded)
		hanging := channel.stream(within(time.Second/2), "HangStream", two)
		expect(hanging.read(), "begun", "the message")
		_, err := hanging.rest()
		expectCode(err, codes.DeadlineExceeded)
		channel.wasCancelled(one)
		channel.wasCancelled(two)
	})
	define("deadline-known", func() {
		channel := plain()
		left, err := strconv.Atoi(channel.ok("Remaining", ""))
		must(err)
		expect(0 < left && left <= 60200, true, fmt.Sprint(left, " within the deadline"))
		answer, err := channel.call(context.Background(), "Remaining", "")
		must(err)
		expect(answer, "none", "the deadline")
	})
	define("cancel-unary", func() {
		channel, name := plain(), newName()
		ctx, cancel := context.WithCancel(minute())
		go func() {
			defer cancel()
			for range 3000 {
				if answer, _ := channel.call(minute(), "Journal", name); answer == "begun" {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		channel.refused(ctx, "Hang", name, codes.Canceled)
		channel.wasCancelled(name)
	})
	cancelled := func(open func(connection, context.Context, string) call) {
		channel, name := plain(), newName()
		ctx, cancel := context.WithCancel(minute())
		hanging := open(channel, ctx, name)
		expect(hanging.read(), "begun", "the message")
		cancel()
		_, err := hanging.rest()
		expectCode(err, codes.Canceled)
		channel.wasCancelled(name)
	}
	define("cancel-stream", func() {
		cancelled(func(channel connection, ctx context.Context, name string) call {
			return channel.stream(ctx, "HangStream", name)
		})
	})
	define("cancel-bidi", func() {
		cancelled(func(channel connection, ctx context.Context, name string) call {
			made := channel.bidi(ctx, "HangBidi")
			made.write(name)
			return made
		})
	})

	define("gzip-request", func() {
		channel := plain()
		for _, message := range []string{"", "short", strings.Repeat("z", mib), allBytes(256000)} {
			expect(channel.ok("Echo", message, grpc.UseCompressor(gzip.Name)) == message, true, "the same message")
		}
		chat := channel.bidi(minute(), "Chat", grpc.UseCompressor(gzip.Name))
		for i := range 20 {
			chat.write(strings.Repeat(strconv.Itoa(i), 5000))
			expect(chat.read() == strings.Repeat(strconv.Itoa(i), 5000), true, "the same message")
		}
		must(chat.CloseSend())
		chat.endsWith(0)
	})
	define("gzip-response", func() {
		channel := connect(at["gzip"])
		for _, size := range []int{0, 1, 100, 4 * mib} {
			expect(channel.ok("Big", strconv.Itoa(size)) == strings.Repeat("b", size), true, "the message")
		}
		channel.stream(minute(), "Count", "100 5000 0").endsWith(100)
	})
	define("unknown-encoding", func() {
		_, err := plain().call(minute(), "Echo", "x", grpc.UseCompressor("unheard-of"))
		if at["front"] == "grpc" {
			expectCode(err, codes.Internal) // core's answer to a name that it does not know at all
		} else {
			expectCode(err, codes.Unimplemented)
		}
	})
	define("limit-request", func() {
		channel := plain()
		expect(len(channel.ok("Echo", allBytes(limitBytes))), limitBytes, "the length")
		channel.refused(minute(), "Echo", allBytes(limitBytes+1), codes.ResourceExhausted)
		channel.lives()
		channel.refused(
			minute(), "Echo", strings.Repeat("l", limitBytes+1), codes.ResourceExhausted, grpc.UseCompressor(gzip.Name))
		channel.lives()
	})
	define("limit-response", func() {
		channel := plain()
		expect(len(channel.ok("Big", strconv.Itoa(limitBytes))), limitBytes, "the length")
		channel.refused(minute(), "Big", strconv.Itoa(limitBytes+1), codes.ResourceExhausted)
		channel.lives()
	})
	define("slow-reader", func() {
		channel, name := plain(), newName()
		ctx, cancel := context.WithCancel(minute())
		flood := channel.stream(ctx, "Flood", name)
		expect(len(flood.read()), floodBytes, "the length")
		before, same := "", 0
		for i := 0; same < 3; i++ {
			expect(i < 300, true, "the flood stops")
			time.Sleep(200 * time.Millisecond)
			now := channel.ok("Journal", name)
			if now == before {
				same++
			} else {
				before, same = now, 0
			}
		}
		written, err := strconv.Atoi(strings.Fields(before)[1])
		must(err)
		expect(written*floodBytes < 256*mib, true, fmt.Sprint(written, " messages are few"))
		expect(len(channel.ok("Big", strconv.Itoa(mib))), mib, "the length")
		for range written + 200 {
			expect(len(flood.read()), floodBytes, "the length")
		}
		cancel()
		channel.wasCancelled(name)
	})

	define("age-drain", func() {
		channel, peers, problem := connect(at["age"]), map[string]bool{}, ""
		var mutex sync.Mutex
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 10000 {
					peer, err := channel.call(minute(), "Peer", "")
					if err == nil {
						_, err = channel.call(minute(), "Sleep", "5")
					}
					mutex.Lock()
					peers[peer] = true
					if err != nil {
						problem = err.Error()
					}
					done := len(peers) >= 5 || problem != ""
					mutex.Unlock()
					if done {
						return
					}
				}
			})
		}
		group.Wait()
		expect(problem, "", "the problem")
		expect(len(peers) >= 5, true, "connections get old")
	})
	define("age-stream", func() {
		channel := connect(at["age"])
		first := channel.ok("Peer", "")
		count, chat := channel.stream(minute(), "Count", "150 10 10"), channel.bidi(minute(), "Chat")
		chat.write("before")
		expect(chat.read(), "before", "the answer")
		until(func() bool { return channel.ok("Peer", "") != first }, "another connection")
		chat.write("after")
		expect(chat.read(), "after", "the answer")
		must(chat.CloseSend())
		chat.endsWith(0)
		count.endsWith(150)
	})
	define("graceful-stop", func() {
		control := plain()
		channel, name := connect(control.ok("Fresh", "")), newName()
		count := channel.stream(minute(), "Count", "100 10 10")
		count.read()
		slept := make(chan error)
		go func() {
			_, err := channel.call(minute(), "Sleep", "1000 "+name)
			slept <- err
		}()
		until(func() bool { return control.ok("Journal", name) != "" }, "the call's begin")
		expect(channel.ok("StopSoon", ""), "stopping", "the answer")
		must(<-slept)
		count.endsWith(99)
		channel.refused(within(20*time.Second), "Echo", "x", codes.Unavailable)
	})
	define("keepalive", func() {
		// Go's client does not ping more often than each 10 s: the server's pings are what is met here.
		channel := connect(at["pings"], grpc.WithKeepaliveParams(
			keepalive.ClientParameters{Time: 10 * time.Second, PermitWithoutStream: true}))
		peer := channel.ok("Peer", "")
		expect(channel.ok("Sleep", "3000"), "slept", "the answer")
		expect(channel.ok("Peer", ""), peer, "the connection")
	})

	define("tls", func() {
		channel := connect(at["tls"], secured(false))
		expect(channel.ok("Echo", allBytes(2*mib)) == allBytes(2*mib), true, "the same message")
		expect(channel.ok("Identity", ""), "none", "the identity")
	})
	define("mtls", func() {
		certificate, err := os.ReadFile(at["directory"] + "/client.pem")
		must(err)
		expect(connect(at["mtls"], secured(true)).ok("Identity", ""), string(certificate), "the identity")
	})
	define("mtls-missing", func() {
		connect(at["mtls"], secured(false)).refused(within(20*time.Second), "Echo", "x", codes.Unavailable)
	})

	define("health-check", func() {
		channel, check := connect(at["broker"]), "/grpc.health.v1.Health/Check"
		for _, service := range []string{"", "takhin.v1.TakhinService"} {
			request := encoded(&grpc_health_v1.HealthCheckRequest{Service: service})
			expect(serving(channel.ok(check, request)), grpc_health_v1.HealthCheckResponse_SERVING, "the status")
		}
		channel.refused(minute(), check, encoded(&grpc_health_v1.HealthCheckRequest{Service: "none"}), codes.NotFound)
	})
	define("health-watch", func() {
		ctx, cancel := context.WithCancel(minute())
		watch := connect(at["broker"]).stream(ctx, "/grpc.health.v1.Health/Watch", "")
		expect(serving(watch.read()), grpc_health_v1.HealthCheckResponse_SERVING, "the status")
		cancel()
		_, err := watch.rest()
		expectCode(err, codes.Canceled)
	})
	define("reflection", func() { reflected(connect(at["broker"])) })
	define("broker-produce-consume", func() {
		b := newBroker()
		for i := range 100 {
			answer := b.parse("ProduceMessageResponse", b.channel.ok("/takhin.v1.TakhinService/ProduceMessage", b.record(i)))
			expect(b.number(answer, "offset"), int64(i), "the offset")
		}
		b.holds(100)
	})
	define("broker-produce-stream", func() {
		b := newBroker()
		produce := b.channel.bidi(minute(), "/takhin.v1.TakhinService/ProduceMessageStream")
		go func() {
			for i := range 1000 {
				message := []byte(b.record(i))
				if produce.SendMsg(&message) != nil {
					return
				}
			}
			produce.CloseSend()
		}()
		for i, each := range produce.endsWith(1000) {
			expect(b.number(b.parse("ProduceMessageResponse", each), "offset"), int64(i), "the offset")
		}
		b.holds(1000)
	})
}

// reflected gives the file of the broker's service, as the broker tells it.
func reflected(channel connection) protoreflect.FileDescriptor {
	info := channel.bidi(minute(), "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	ask := func(request *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
		info.write(encoded(request))
		response := &reflection.ServerReflectionResponse{}
		must(proto.Unmarshal([]byte(info.read()), response))
		return response
	}
	services := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService()
	listed := fmt.Sprint(services)
	expect(strings.Contains(listed, "takhin.v1.TakhinService"), true, "the broker's service is listed")
	files := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: "takhin.v1.TakhinService"}}).GetFileDescriptorResponse().GetFileDescriptorProto()
	must(info.CloseSend())
	info.endsWith(0)
	found := &descriptorpb.FileDescriptorProto{}
	must(proto.Unmarshal(files[0], found))
	made, err := protodesc.NewFile(found, protoregistry.GlobalFiles)
	must(err)
	return made
}

// broker has a topic of its own, and messages made from what reflection tells.
type broker struct {
	channel connection
	file    protoreflect.FileDescriptor
	topic   string
}

func newBroker() broker {
	channel := connect(at["broker"])
	made := broker{channel, reflected(channel), newName()}
	request := made.message("CreateTopicRequest", map[string]any{"name": made.topic, "num_partitions": int32(1)})
	channel.ok("/takhin.v1.TakhinService/CreateTopic", encoded(request))
	return made
}

func (b broker) message(name string, fields map[string]any) *dynamicpb.Message {
	made := dynamicpb.NewMessage(b.file.Messages().ByName(protoreflect.Name(name)))
	for field, value := range fields {
		made.Set(made.Descriptor().Fields().ByName(protoreflect.Name(field)), protoreflect.ValueOf(value))
	}
	return made
}

func (b broker) parse(name, bytes string) *dynamicpb.Message {
	made := b.message(name, nil)
	must(proto.Unmarshal([]byte(bytes), made))
	return made
}

func (b broker) number(message protoreflect.Message, field string) int64 {
	return message.Get(message.Descriptor().Fields().ByName(protoreflect.Name(field))).Int()
}

func (b broker) record(index int) string {
	record := b.message("Record", map[string]any{"value": []byte(strconv.Itoa(index))})
	return encoded(b.message("ProduceMessageRequest", map[string]any{
		"topic": b.topic, "record": record.ProtoReflect(), "required_acks": int32(1)}))
}

func (b broker) holds(count int) {
	request := b.message("ConsumeMessagesRequest", map[string]any{"topic": b.topic, "offset": int64(-1), "until_end": true})
	answers, err := b.channel.stream(minute(), "/takhin.v1.TakhinService/ConsumeMessages", encoded(request)).rest()
	must(err)
	next := 0
	for _, each := range answers {
		answer := b.parse("ConsumeMessagesResponse", each)
		records := answer.Get(answer.Descriptor().Fields().ByName("records")).List()
		for i := range records.Len() {
			record := records.Get(i).Message()
			expect(b.number(record, "offset"), int64(next), "the offset")
			value := record.Get(record.Descriptor().Fields().ByName("value")).Bytes()
			expect(string(value), strconv.Itoa(next), "the value")
			next++
		}
	}
	expect(next, count, "the number of records")
}
