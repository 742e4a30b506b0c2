// Time and cancellation, compression, limits and flow control, the life of a connection, TLS, health.

import io.grpc.CallOptions;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

final class Life extends Base {
  static void define() {
    add("deadline", () -> {
      Client.Connection channel = plain();
      channel.lives();
      String one = Client.newName(), two = Client.newName();
      CallOptions brief = Client.Connection.within(500);
      channel.unary("Hang", bytes(one), brief, new Metadata()).refused(Status.Code.DEADLINE_EXCEEDED);
      Client.Call stream = new Client.Call(
          channel.channel, "HangStream", MethodType.SERVER_STREAMING, Client.Connection.within(500), new Metadata(), false);
      expect(text(stream.send(bytes(two)).end().read()), "begun", "the message");
      stream.refused(Status.Code.DEADLINE_EXCEEDED);
      channel.wasCancelled(one);
      channel.wasCancelled(two);
    });
    add("deadline-known", () -> {
      Client.Connection channel = plain();
      int leftMs = Integer.parseInt(channel.told("Remaining", ""));
      expect(leftMs > 0 && leftMs <= 60_200, true, leftMs + " within the deadline");
      byte[] answer = channel.unary("Remaining", new byte[0], CallOptions.DEFAULT, new Metadata()).one();
      expect(text(answer), "none", "the deadline");
    });
    add("cancel-unary", () -> {
      Client.Connection channel = plain();
      String name = Client.newName();
      Client.Call call = channel.unary("Hang", name);
      Client.until(() -> channel.told("Journal", name).equals("begun"), "the call's begin");
      cancelled(channel, call, name);
    });
    add("cancel-stream", () -> {
      Client.Connection channel = plain();
      String name = Client.newName();
      Client.Call call = channel.stream("HangStream", name);
      expect(text(call.read()), "begun", "the message");
      cancelled(channel, call, name);
    });
    add("cancel-bidi", () -> {
      Client.Connection channel = plain();
      String name = Client.newName();
      Client.Call call = channel.bidi("HangBidi").send(bytes(name));
      expect(text(call.read()), "begun", "the message");
      cancelled(channel, call, name);
    });

    CallOptions gzip = CallOptions.DEFAULT.withCompression("gzip");
    add("gzip-request", () -> {
      Client.Connection channel = plain();
      for (byte[] each : new byte[][] {new byte[0], bytes("short"), new byte[MIB], allBytes(256_000)}) {
        expect(channel.echo(each, gzip), each, "the echo");
      }
      Client.Call chat = new Client.Call(channel.channel, "Chat", MethodType.BIDI_STREAMING, gzip, new Metadata(), true);
      for (int i = 0; i < 20; i++) {
        expect(text(chat.send(bytes(("" + i).repeat(5000))).read()), ("" + i).repeat(5000), "the answer");
      }
      chat.end().ends(0);
    });
    add("gzip-response", () -> {
      Client.Connection channel = Client.Connection.plain("gzip");
      for (int size : new int[] {0, 1, 100, 4 * MIB}) {
        expect(text(channel.ok("Big", "" + size)), "b".repeat(size), "the answer");
      }
      channel.stream("Count", "100 5000 0").ends(100);
    });
    add("limit-request", () -> {
      Client.Connection channel = plain();
      expect(channel.echo(new byte[Client.LIMIT]).length, Client.LIMIT, "the length");
      for (CallOptions each : List.of(CallOptions.DEFAULT, gzip)) {
        channel.unary("Echo", new byte[Client.LIMIT + 1], each, new Metadata()).refused(Status.Code.RESOURCE_EXHAUSTED);
        channel.lives();
      }
    });
    add("limit-response", () -> {
      Client.Connection channel = plain();
      expect(channel.ok("Big", "" + Client.LIMIT).length, Client.LIMIT, "the length");
      channel.unary("Big", "" + (Client.LIMIT + 1)).refused(Status.Code.RESOURCE_EXHAUSTED);
      channel.lives();
    });
    add("slow-reader", Life::slowReader);

    add("age-drain", () -> {
      Client.Connection channel = Client.Connection.plain("age");
      Set<String> peers = ConcurrentHashMap.newKeySet();
      List<Throwable> problems = new ArrayList<>();
      List<Thread> threads = new ArrayList<>();
      for (int i = 0; i < 8; i++) {
        Thread thread = new Thread(() -> {
          for (int turn = 0; turn < 10_000 && peers.size() < 5; turn++) {
            peers.add(channel.told("Peer", ""));
            expect(channel.told("Sleep", "5"), "slept", "the answer");
          }
        });
        thread.setUncaughtExceptionHandler((each, problem) -> {
          synchronized (problems) {
            problems.add(problem);
          }
        });
        thread.start();
        threads.add(thread);
      }
      for (Thread each : threads) each.join();
      expect(problems.toString(), "[]", "the problems");
      expect(peers.size() >= 5, true, "connections get old");
    });
    add("age-stream", () -> {
      Client.Connection channel = Client.Connection.plain("age");
      String first = channel.told("Peer", "");
      Client.Call count = channel.stream("Count", "150 10 10"), chat = channel.bidi("Chat");
      expect(text(chat.send(bytes("before")).read()), "before", "the answer");
      Client.until(() -> !channel.told("Peer", "").equals(first), "another connection");
      expect(text(chat.send(bytes("after")).read()), "after", "the answer");
      chat.end().ends(0);
      count.ends(150);
    });
    add("graceful-stop", () -> {
      Client.Connection control = plain();
      String name = Client.newName();
      Client.Connection channel = new Client.Connection(
          Client.Connection.to(control.told("Fresh", "")).usePlaintext());
      Client.Call count = channel.stream("Count", "100 10 10");
      expect(count.read().length, 10, "the length");
      Client.Call sleeping = channel.unary("Sleep", "1000 " + name);
      Client.until(() -> !control.told("Journal", name).isEmpty(), "the call's begin");
      expect(channel.told("StopSoon", ""), "stopping", "the answer");
      expect(text(sleeping.one()), "slept", "the answer");
      count.ends(99);
      channel.unary("Echo", bytes("x"), Client.Connection.within(20_000), new Metadata())
          .refused(Status.Code.UNAVAILABLE);
    });
    add("keepalive", () -> {
      // Java's client does not ping more often than each 10 s: the server's pings are what is met here.
      Client.Connection channel = new Client.Connection(Client.Connection.to(Client.AT.get("pings")).usePlaintext()
          .keepAliveTime(10, TimeUnit.SECONDS).keepAliveWithoutCalls(true));
      String peer = channel.told("Peer", "");
      expect(channel.told("Sleep", "3000"), "slept", "the answer");
      expect(channel.told("Peer", ""), peer, "the connection");
    });

    add("tls", () -> {
      Client.Connection channel = Client.Connection.secured("tls", false);
      expect(channel.echo(allBytes(2 * MIB)), allBytes(2 * MIB), "the echo");
      expect(channel.told("Identity", ""), "none", "the identity");
    });
    add("mtls", () -> {
      String shown = Files.readString(Path.of(Client.AT.get("directory"), "client.pem"));
      expect(Client.Connection.secured("mtls", true).told("Identity", ""), shown, "the identity");
    });
    add("mtls-missing", () -> Client.Connection.secured("mtls", false)
        .unary("Echo", bytes("x"), Client.Connection.within(20_000), new Metadata()).refused(Status.Code.UNAVAILABLE));

    add("health-check", () -> {
      Client.Connection channel = Client.Connection.plain("broker");
      expect(channel.ok("/grpc.health.v1.Health/Check", ""), new byte[] {8, 1}, "the status");
      channel.unary("/grpc.health.v1.Health/Check", "\n\004none").refused(Status.Code.NOT_FOUND);
    });
    add("health-watch", () -> {
      Client.Call watch = Client.Connection.plain("broker").stream("/grpc.health.v1.Health/Watch", "");
      expect(watch.read(), new byte[] {8, 1}, "the status");
      watch.call.cancel("enough", null);
      watch.refused(Status.Code.CANCELLED);
    });
  }

  private static void cancelled(Client.Connection channel, Client.Call call, String name) throws Exception {
    call.call.cancel("enough", null);
    call.refused(Status.Code.CANCELLED);
    channel.wasCancelled(name);
  }

  private static void slowReader() throws Exception {
    Client.Connection channel = plain();
    String name = Client.newName(), before = "";
    Client.Call flood = channel.stream("Flood", name);
    expect(flood.read().length, Client.FLOOD, "the length");
    for (int look = 0, same = 0; same < 3; look++) {
      expect(look < 300, true, "the flood stops");
      Thread.sleep(200);
      String now = channel.told("Journal", name);
      same = now.equals(before) ? same + 1 : 0;
      before = now;
    }
    int written = Integer.parseInt(before.split(" ")[1]);
    expect((long) written * Client.FLOOD < 256L * MIB, true, written + " messages are few");
    expect(channel.ok("Big", "" + MIB).length, MIB, "the length");
    for (int i = 0; i < written + 200; i++) expect(flood.read().length, Client.FLOOD, "the length");
    flood.call.cancel("enough", null);
    channel.wasCancelled(name);
  }
}
