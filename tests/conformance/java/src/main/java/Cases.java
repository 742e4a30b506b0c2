// Messages, status and metadata.

import io.grpc.CallOptions;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

final class Cases extends Base {
  static void define() {
    add("unary-echo", () -> expect(plain().told("Echo", "hello"), "hello", "the echo"));
    add("unary-empty", () -> expect(plain().told("Echo", ""), "", "the echo"));
    add("unary-4mib", () -> expect(plain().echo(allBytes(4 * MIB)), allBytes(4 * MIB), "the echo"));
    add("unary-sizes", () -> {
      Client.Connection channel = plain();
      List<Integer> sizes = new ArrayList<>(List.of(1, 2, 131072, 262139, 262144, MIB - 5, MIB, MIB + 1));
      for (int i = 0; i < 25; i++) sizes.addAll(List.of(16370 + i, 65520 + i));
      for (int size : sizes) expect(channel.echo(allBytes(size)), allBytes(size), "the message of " + size);
    });
    add("stream-count", () -> {
      List<byte[]> found = plain().stream("Count", "1000 100 0").ends(1000);
      for (int i = 0; i < 1000; i++) expect(text(found.get(i)), i + ".".repeat(100 - digits(i)), "the message");
    });
    add("stream-empty", () -> plain().stream("Count", "0 0 0").ends(0));
    add("stream-large", () -> {
      List<byte[]> found = plain().stream("Count", "32 " + MIB + " 0").ends(32);
      for (int i = 0; i < 32; i++) expect(text(found.get(i)), i + ".".repeat(MIB - digits(i)), "the message");
    });
    add("bidi-chat", () -> {
      Client.Call chat = plain().bidi("Chat");
      for (int i = 0; i < 200; i++) expect(text(chat.send(bytes("" + i)).read()), "" + i, "the answer");
      chat.end().ends(0);
    });
    add("bidi-half-close", () -> {
      Client.Call hold = plain().bidi("Hold");
      for (int i = 0; i < 200; i++) hold.send(bytes(("" + i).repeat(i % 50)));
      List<byte[]> found = hold.end().ends(200);
      for (int i = 0; i < 200; i++) expect(text(found.get(i)), ("" + i).repeat(i % 50), "the message");
    });
    add("bidi-collect", () -> {
      Client.Call collect = plain().bidi("Collect");
      for (int i = 0; i < 2000; i++) collect.send(new byte[1000]);
      expect(text(collect.end().one()), "2000 2000000", "the answer");
    });
    add("interleaved-streams", () -> {
      Client.Connection channel = plain();
      List<Client.Call> streams = new ArrayList<>();
      for (int i = 0; i < 50; i++) streams.add(channel.bidi("Chat"));
      for (int turn = 0; turn < 20; turn++) {
        for (int i = 0; i < 50; i++) streams.get(i).send(bytes(turn + "/" + i + ".".repeat(i * 20)));
        for (int i = 0; i < 50; i++) expect(text(streams.get(i).read()), turn + "/" + i + ".".repeat(i * 20), "it");
      }
      for (Client.Call each : streams) each.end().ends(0);
    });
    add("concurrent-1000", () -> {
      Client.Connection channel = plain();
      channel.lives();
      List<Client.Call> calls = new ArrayList<>();
      for (int i = 0; i < 1000; i++) calls.add(i % 2 == 1 ? channel.unary("Echo", "" + i) : channel.unary("Sleep", "300"));
      for (int i = 0; i < 1000; i++) expect(text(calls.get(i).one()), i % 2 == 1 ? "" + i : "slept", "the answer");
    });

    add("error-unary", () -> {
      Client.Call call = plain().unary("Fail", "TOPIC_NOT_FOUND\nno such thing").refused(Status.Code.NOT_FOUND);
      expect(call.status.getDescription(), "no such thing", "the message");
    });
    add("error-codes", () -> {
      Client.Connection channel = plain();
      for (Map.Entry<String, Status.Code> each : Map.ofEntries(
          Map.entry("MALFORMED_REQUEST", Status.Code.INVALID_ARGUMENT), Map.entry("TOPIC_NOT_FOUND", Status.Code.NOT_FOUND),
          Map.entry("TOPIC_EXISTS", Status.Code.ALREADY_EXISTS), Map.entry("OFFSET_OUT_OF_RANGE", Status.Code.OUT_OF_RANGE),
          Map.entry("GROUP_HAS_MEMBERS", Status.Code.FAILED_PRECONDITION), Map.entry("DRAINING", Status.Code.UNAVAILABLE),
          Map.entry("CALL_LIMIT", Status.Code.RESOURCE_EXHAUSTED), Map.entry("CORRUPT_BATCH", Status.Code.DATA_LOSS),
          Map.entry("PRODUCER_FENCED", Status.Code.ABORTED), Map.entry("ACK_TIMEOUT", Status.Code.DEADLINE_EXCEEDED),
          Map.entry("ACCESS_DENIED", Status.Code.PERMISSION_DENIED), Map.entry("INTERNAL_ERROR", Status.Code.INTERNAL),
          Map.entry("CREDENTIALS_MISSING", Status.Code.UNAUTHENTICATED)).entrySet()) {
        channel.unary("Fail", each.getKey() + "\ntext").refused(each.getValue());
      }
    });
    add("error-after-messages", () -> {
      Client.Call call = plain().stream("Count", "10 10000 0 RECORD_TOO_LARGE");
      expect(call.rest().size(), 10, "the number of messages");
      call.refused(Status.Code.RESOURCE_EXHAUSTED);
    });
    add("error-while-sending", () -> {
      Client.Connection channel = plain();
      Client.Call failing = channel.bidi("FailAfterFirst");
      for (int i = 0; i < 100; i++) failing.send(new byte[1000]);
      failing.refused(Status.Code.ABORTED);
      channel.lives();
    });
    add("message-percent", () -> {
      Client.Connection channel = plain();
      for (String each : List.of("100% 日本語 – ß €", "%", "%41 %zz", "😀".repeat(50), "tab\tline\nfeed")) {
        Client.Call call = channel.unary("Fail", "TOPIC_EXISTS\n" + each).refused(Status.Code.ALREADY_EXISTS);
        String told = each.replace("\t", "\\t").replace("\n", "\\n");
        expect(call.status.getDescription(), told, "the message");
      }
    });
    add("status-details", () -> {
      Client.Call call = plain().unary("Fail", "TOPIC_EXISTS\nschön").refused(Status.Code.ALREADY_EXISTS);
      String details = text(call.trailers.get(
          Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER)));
      for (String part : List.of("schön", "google.rpc.ErrorInfo", "TOPIC_EXISTS", "takhin", "planted")) {
        expect(details.contains(part), true, part + " in the details");
      }
    });
    for (String each : List.of("unknown-method Nothing", "unknown-service /none.v1.None/Echo")) {
      String[] parts = each.split(" ");
      add(parts[0], () -> {
        Client.Connection channel = plain();
        channel.unary(parts[1], "").refused(Status.Code.UNIMPLEMENTED);
        channel.lives();
      });
    }

    add("metadata-ascii", () -> {
      StringBuilder printable = new StringBuilder();
      for (char c = '!'; c <= '~'; c++) printable.append(c);
      Metadata sent = new Metadata();
      sent.put(ascii("x-one"), "1");
      sent.put(ascii("x-long"), "v".repeat(3000));
      sent.put(ascii("x-printable"), printable.toString());
      String seen = seen(sent);
      for (String each : List.of("x-one 1", "x-long " + "v".repeat(3000), "x-printable " + printable)) {
        String[] parts = each.split(" ");
        arrives(seen, parts[0], bytes(parts[1]));
      }
    });
    add("metadata-binary", () -> {
      byte[] all = new byte[256];
      for (int i = 0; i < 256; i++) all[i] = (byte) i;
      Map<String, byte[]> values = Map.of(
          "x-all-bin", all, "x-one-bin", new byte[] {-1}, "x-two-bin", new byte[] {-1, -1}, "x-nul-bin", new byte[1],
          "x-line-bin", bytes("\r\n"), "x-comma-bin", bytes(","));
      Metadata sent = new Metadata();
      values.forEach((key, value) -> sent.put(Metadata.Key.of(key, Metadata.BINARY_BYTE_MARSHALLER), value));
      String seen = seen(sent);
      values.forEach((key, value) -> arrives(seen, key, value));
    });
    add("metadata-too-large", () -> {
      Client.Connection channel = plain();
      channel.lives();
      Metadata sent = new Metadata();
      sent.put(ascii("x-large"), "l".repeat(40_000));
      Client.Call call = channel.unary("Echo", new byte[0], Client.Connection.within(60_000), sent);
      call.rest();
      // Netty may know the server's limit, and not send it.
      boolean refused = List.of(Status.Code.RESOURCE_EXHAUSTED, Status.Code.INTERNAL).contains(call.status.getCode());
      expect(refused, true, "refused: " + call.status);
      channel.lives();
    });
    add("request-id", () -> {
      Client.Connection channel = plain();
      for (String name : List.of("RequestId", "Fail")) {
        Metadata sent = new Metadata();
        sent.put(ascii("x-request-id"), "mine-1");
        Client.Call call = channel.unary(name, bytes("TOPIC_EXISTS\n"), Client.Connection.within(60_000), sent);
        call.rest();
        expect(call.trailing("x-request-id"), "mine-1", "the request id of " + name);
      }
      Client.Call call = channel.unary("Fail", "TOPIC_EXISTS\n").refused(Status.Code.ALREADY_EXISTS);
      expect(call.trailing("x-request-id") != null, true, "a request id");
    });
  }

  private static int digits(int number) { return ("" + number).length(); }

  private static Metadata.Key<String> ascii(String key) {
    return Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER);
  }

  private static String seen(Metadata sent) throws InterruptedException {
    CallOptions options = Client.Connection.within(60_000);
    return text(plain().unary("Metadata", new byte[0], options, sent).one());
  }

  private static void arrives(String seen, String key, byte[] value) {
    StringBuilder line = new StringBuilder("\n" + key + "=");
    for (byte each : value) line.append(String.format("%02x", each));
    expect(("\n" + seen).contains(line + "\n"), true, key + " arrives");
  }
}
