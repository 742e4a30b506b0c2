package main

// Messages, status, metadata.

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func allBytes(size int) string {
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(i % 251)
	}
	return string(out)
}

func init() {
	define("unary-echo", func() { expect(plain().ok("Echo", "hello"), "hello", "the echo") })
	define("unary-empty", func() { expect(plain().ok("Echo", ""), "", "the echo") })
	define("unary-4mib", func() { expect(plain().ok("Echo", allBytes(4*mib)) == allBytes(4*mib), true, "the same") })
	define("unary-sizes", func() {
		channel := plain()
		sizes := []int{1, 2, 131072, 262139, 262144, mib - 5, mib, mib + 1}
		for _, base := range []int{16370, 65520} {
			for i := range 25 {
				sizes = append(sizes, base+i)
			}
		}
		for _, size := range sizes {
			expect(channel.ok("Echo", allBytes(size)) == allBytes(size), true, fmt.Sprint(size))
		}
	})
	define("stream-count", func() {
		for i, each := range plain().stream(minute(), "Count", "1000 100 0").endsWith(1000) {
			expect(strings.TrimRight(each, "."), strconv.Itoa(i), "the message")
		}
	})
	define("stream-empty", func() { plain().stream(minute(), "Count", "0 0 0").endsWith(0) })
	define("stream-large", func() {
		for i, each := range plain().stream(minute(), "Count", fmt.Sprintf("32 %d 0", mib)).endsWith(32) {
			expect(len(each), mib, "the length")
			expect(strings.TrimRight(each, "."), strconv.Itoa(i), "the message")
		}
	})
	define("bidi-chat", func() {
		chat := plain().bidi(minute(), "Chat")
		for i := range 200 {
			chat.write(strconv.Itoa(i))
			expect(chat.read(), strconv.Itoa(i), "the answer")
		}
		must(chat.CloseSend())
		chat.endsWith(0)
	})
	define("bidi-half-close", func() {
		hold := plain().bidi(minute(), "Hold")
		for i := range 200 {
			hold.write(strings.Repeat(strconv.Itoa(i), i%50))
		}
		must(hold.CloseSend())
		for i, each := range hold.endsWith(200) {
			expect(each, strings.Repeat(strconv.Itoa(i), i%50), "the message")
		}
	})
	define("bidi-collect", func() {
		collect := plain().bidi(minute(), "Collect")
		for range 2000 {
			collect.write(strings.Repeat("m", 1000))
		}
		must(collect.CloseSend())
		expect(collect.endsWith(1)[0], "2000 2000000", "the answer")
	})
	define("interleaved-streams", func() {
		channel := plain()
		var streams []call
		for range 50 {
			streams = append(streams, channel.bidi(minute(), "Chat"))
		}
		for turn := range 20 {
			for i, each := range streams {
				each.write(fmt.Sprintf("%d/%d%s", turn, i, strings.Repeat(".", i*20)))
			}
			for i, each := range streams {
				expect(each.read(), fmt.Sprintf("%d/%d%s", turn, i, strings.Repeat(".", i*20)), "the answer")
			}
		}
		for _, each := range streams {
			must(each.CloseSend())
			each.endsWith(0)
		}
	})
	define("concurrent-1000", func() {
		channel := plain()
		channel.lives()
		problems := make(chan string, 1000)
		var group sync.WaitGroup
		for i := range 1000 {
			group.Go(func() {
				name, request, wanted := "Sleep", "300", "slept"
				if i%2 == 1 {
					name, request, wanted = "Echo", strconv.Itoa(i), strconv.Itoa(i)
				}
				if answer, err := channel.call(minute(), name, request); err != nil || answer != wanted {
					problems <- fmt.Sprintf("%.100q, not %q: %v", answer, wanted, err)
				}
			})
		}
		group.Wait()
		if len(problems) > 0 {
			fail("%d calls of 1,000; one: %s", len(problems), <-problems)
		}
	})

	define("error-unary", func() {
		err := plain().refused(minute(), "Fail", "TOPIC_NOT_FOUND\nno such thing", codes.NotFound)
		expect(status.Convert(err).Message(), "no such thing", "the message")
	})
	define("error-codes", func() {
		channel := plain()
		for reason, code := range map[string]codes.Code{
			"MALFORMED_REQUEST": codes.InvalidArgument, "TOPIC_NOT_FOUND": codes.NotFound,
			"TOPIC_EXISTS": codes.AlreadyExists, "OFFSET_OUT_OF_RANGE": codes.OutOfRange,
			"GROUP_HAS_MEMBERS": codes.FailedPrecondition, "CALL_LIMIT": codes.ResourceExhausted,
			"DRAINING": codes.Unavailable, "CORRUPT_BATCH": codes.DataLoss, "PRODUCER_FENCED": codes.Aborted,
			"ACK_TIMEOUT": codes.DeadlineExceeded, "ACCESS_DENIED": codes.PermissionDenied,
			"CREDENTIALS_MISSING": codes.Unauthenticated, "INTERNAL_ERROR": codes.Internal,
		} {
			channel.refused(minute(), "Fail", reason+"\ntext", code)
		}
	})
	define("error-after-messages", func() {
		found, err := plain().stream(minute(), "Count", "10 10000 0 RECORD_TOO_LARGE").rest()
		expect(len(found), 10, "the number of messages")
		expectCode(err, codes.ResourceExhausted)
	})
	define("error-while-sending", func() {
		channel := plain()
		failing := channel.bidi(minute(), "FailAfterFirst")
		message := make([]byte, 1000)
		for failing.SendMsg(&message) == nil {
		}
		_, err := failing.rest()
		expectCode(err, codes.Aborted)
		channel.lives()
	})
	define("message-percent", func() {
		channel := plain()
		for sent, told := range map[string]string{
			"100% 日本語 – ß €": "100% 日本語 – ß €", "%": "%", "%41 %zz": "%41 %zz",
			" leading and trailing ": " leading and trailing ", "tab\tline\nfeed\x7f": `tab\tline\nfeed\x7f`,
			strings.Repeat("😀", 50): strings.Repeat("😀", 50),
		} {
			err := channel.refused(minute(), "Fail", "TOPIC_EXISTS\n"+sent, codes.AlreadyExists)
			expect(status.Convert(err).Message(), told, "the message")
		}
	})
	define("status-details", func() {
		err := plain().refused(minute(), "Fail", "TOPIC_EXISTS\nschön", codes.AlreadyExists)
		info, is := status.Convert(err).Details()[0].(*errdetails.ErrorInfo)
		expect(is, true, "an ErrorInfo")
		expect(info.Reason+" "+info.Domain+" "+info.Metadata["planted"], "TOPIC_EXISTS takhin yes", "the detail")
	})
	define("unknown-method", func() {
		channel := plain()
		channel.refused(minute(), "Nothing", "", codes.Unimplemented)
		channel.lives()
	})
	define("unknown-service", func() {
		channel := plain()
		channel.refused(minute(), "/none.v1.None/Echo", "", codes.Unimplemented)
		channel.lives()
	})

	define("metadata-ascii", func() {
		printable := ""
		for c := '!'; c <= '~'; c++ {
			printable += string(c)
		}
		arrive("x-twice", "a", "X-One", "1", "x-long", strings.Repeat("v", 3000), "x-printable", printable, "x-twice", "b")
	})
	define("metadata-binary", func() {
		bytes := make([]byte, 256)
		for i := range bytes {
			bytes[i] = byte(i)
		}
		arrive("x-all-bin", string(bytes), "x-one-bin", "\xff", "x-two-bin", "\xff\xff", "x-nul-bin", "\x00", "x-line-bin",
			"\r\n", "x-comma-bin", ",")
	})
	define("metadata-too-large", func() {
		channel := plain()
		channel.lives()
		_, err := channel.call(withMetadata("x-large", strings.Repeat("l", 40000)), "Echo", "")
		// Go's client knows the server's limit, and does not send it.
		if code := status.Code(err); code != codes.ResourceExhausted && code != codes.Internal {
			fail("the code is %v (%v)", code, err)
		}
		channel.lives()
	})
	define("request-id", func() {
		channel := plain()
		for _, name := range []string{"RequestId", "Fail"} {
			var trailer metadata.MD
			channel.call(withMetadata("x-request-id", "mine-1"), name, "TOPIC_EXISTS\n", grpc.Trailer(&trailer))
			expect(strings.Join(trailer["x-request-id"], ","), "mine-1", "the request id of "+name)
		}
		var trailer metadata.MD
		channel.call(context.Background(), "Fail", "TOPIC_EXISTS\n", grpc.Trailer(&trailer))
		expect(len(trailer["x-request-id"]), 1, "the number of request ids")
	})
}

// arrive: the last of a repeated key is the one that counts.
func arrive(pairs ...string) {
	answer, err := plain().call(withMetadata(pairs...), "Metadata", "")
	must(err)
	wanted := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		wanted[strings.ToLower(pairs[i])] = pairs[i+1]
	}
	for key, value := range wanted {
		line := key + "=" + hex.EncodeToString([]byte(value)) + "\n"
		expect(strings.Contains("\n"+answer, "\n"+line), true, key+" arrives")
	}
}
