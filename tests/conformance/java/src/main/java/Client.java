// The cases of tests/conformance from Java: one line each, PASS NAME, FAIL NAME REASON or SKIP NAME REASON.
// Arguments: name=value each, as of Addresses in server.py; only=NAME,NAME for some of the cases.

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContextBuilder;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

public final class Client {
  static final int MIB = 1 << 20, LIMIT = 5 * MIB, FLOOD = 64 * 1024;
  static final Map<String, String> AT = new HashMap<>();
  static final Map<String, Case> CASES = new LinkedHashMap<>();
  static final AtomicInteger COUNTER = new AtomicInteger();
  static final List<ManagedChannel> OPEN = new ArrayList<>();

  interface Case { void run() throws Exception; }

  interface Condition { boolean holds(); }

  static final MethodDescriptor.Marshaller<byte[]> RAW = new MethodDescriptor.Marshaller<>() {
    @Override public InputStream stream(byte[] message) { return new ByteArrayInputStream(message); }

    @Override public byte[] parse(InputStream in) {
      try {
        return in.readAllBytes();
      } catch (IOException problem) {
        throw new UncheckedIOException(problem);
      }
    }
  };

  static void expect(Object found, Object wanted, String what) {
    boolean same = wanted instanceof byte[] bytes ? Arrays.equals(bytes, (byte[]) found) : wanted.equals(found);
    if (!same) throw new AssertionError(what + " is " + brief(found) + ", not " + brief(wanted));
  }

  static String brief(Object value) {
    String text = value instanceof byte[] bytes ? bytes.length + " bytes" : String.valueOf(value);
    return text.substring(0, Math.min(200, text.length()));
  }

  static String newName() { return "java-" + ProcessHandle.current().pid() + "-" + COUNTER.incrementAndGet(); }

  static byte[] bytes(String text) { return text.getBytes(StandardCharsets.UTF_8); }

  static String text(byte[] bytes) { return new String(bytes, StandardCharsets.UTF_8); }

  static byte[] allBytes(int size) {
    byte[] made = new byte[size];
    for (int i = 0; i < size; i++) made[i] = (byte) (i % 251);
    return made;
  }

  static void until(Condition condition, String what) throws InterruptedException {
    for (int turn = 0; turn < 3000; turn++) {
      if (condition.holds()) return;
      Thread.sleep(10);
    }
    throw new AssertionError(what + " did not come true");
  }

  /** A call of any kind: messages are asked for one at a time, as they are read. */
  static final class Call extends ClientCall.Listener<byte[]> {
    final ClientCall<byte[], byte[]> call;
    final BlockingQueue<Object> came = new LinkedBlockingQueue<>();
    final CountDownLatch over = new CountDownLatch(1);
    Status status;
    Metadata trailers;

    Call(ManagedChannel channel, String name, MethodType kind, CallOptions options, Metadata metadata, boolean zips) {
      String path = name.startsWith("/") ? name.substring(1) : "conformance.v1.Conformance/" + name;
      MethodDescriptor<byte[], byte[]> method = MethodDescriptor.<byte[], byte[]>newBuilder(RAW, RAW)
          .setType(kind).setFullMethodName(path).build();
      call = channel.newCall(method, options);
      call.start(this, metadata);
      if (zips) call.setMessageCompression(true);
    }

    @Override public void onMessage(byte[] message) { came.add(message); }

    @Override public void onClose(Status found, Metadata trailing) {
      status = found;
      trailers = trailing;
      came.add(found);
      over.countDown();
    }

    Call send(byte[] message) {
      call.sendMessage(message);
      return this;
    }

    Call end() {
      call.halfClose();
      return this;
    }

    /** Null at its end, however it ended. */
    byte[] read() throws InterruptedException {
      call.request(1);
      Object next = came.poll(70, TimeUnit.SECONDS);
      if (next instanceof byte[] message) return message;
      if (next == null) throw new AssertionError("nothing has come in 70 s");
      came.add(next);
      return null;
    }

    List<byte[]> rest() throws InterruptedException {
      List<byte[]> found = new ArrayList<>();
      for (byte[] each = read(); each != null; each = read()) found.add(each);
      return found;
    }

    Call refused(Status.Code wanted) throws InterruptedException {
      rest();
      expect(status.getCode(), wanted, "the code (" + status.getDescription() + ")");
      return this;
    }

    List<byte[]> ends(int count) throws InterruptedException {
      List<byte[]> found = rest();
      expect(status.getCode(), Status.Code.OK, "the code (" + status.getDescription() + ")");
      expect(found.size(), count, "the number of messages");
      return found;
    }

    byte[] one() throws InterruptedException { return ends(1).get(0); }

    String trailing(String key) { return trailers.get(Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER)); }
  }

  /** A channel, and how its calls are made. */
  static final class Connection {
    final ManagedChannel channel;

    Connection(NettyChannelBuilder builder) {
      channel = builder.maxInboundMessageSize(Integer.MAX_VALUE).build();
      OPEN.add(channel);
    }

    static NettyChannelBuilder to(String address) {
      String[] parts = address.split(":");
      return NettyChannelBuilder.forAddress(parts[0], Integer.parseInt(parts[1]));
    }

    static Connection plain(String where) { return new Connection(to(AT.get(where)).usePlaintext()); }

    static Connection plain() { return plain("plain"); }

    static Connection secured(String where, boolean withClient) throws Exception {
      File directory = new File(AT.get("directory"));
      SslContextBuilder tls = GrpcSslContexts.forClient().trustManager(new File(directory, "ca.pem"));
      if (withClient) tls.keyManager(new File(directory, "client.pem"), new File(directory, "client.key"));
      return new Connection(to(AT.get(where)).sslContext(tls.build()));
    }

    static CallOptions within(long timeoutMs) {
      return CallOptions.DEFAULT.withDeadlineAfter(timeoutMs, TimeUnit.MILLISECONDS);
    }

    Call start(String name, MethodType kind) {
      return new Call(channel, name, kind, within(60_000), new Metadata(), false);
    }

    Call unary(String name, byte[] request, CallOptions options, Metadata metadata) {
      return new Call(channel, name, MethodType.UNARY, options, metadata, options.getCompressor() != null)
          .send(request).end();
    }

    Call unary(String name, String request) { return unary(name, bytes(request), within(60_000), new Metadata()); }

    byte[] ok(String name, String request) throws InterruptedException { return unary(name, request).one(); }

    String told(String name, String request) {
      try {
        return text(ok(name, request));
      } catch (InterruptedException problem) {
        throw new AssertionError(problem);
      }
    }

    Call stream(String name, String request) {
      return start(name, MethodType.SERVER_STREAMING).send(bytes(request)).end();
    }

    Call bidi(String name) { return start(name, MethodType.BIDI_STREAMING); }

    void lives() { expect(told("Echo", "still"), "still", "the echo"); }

    void wasCancelled(String name) { expect(told("AwaitEnd", name).split(" ")[0], "cancelled", "the handler"); }

    byte[] echo(byte[] message, CallOptions options) throws InterruptedException {
      return unary("Echo", message, options, new Metadata()).one();
    }

    byte[] echo(byte[] message) throws InterruptedException { return echo(message, within(60_000)); }
  }

  public static void main(String[] arguments) throws Exception {
    for (String each : arguments) AT.put(each.substring(0, each.indexOf('=')), each.substring(each.indexOf('=') + 1));
    Cases.define();
    Life.define();
    boolean allWell = true;
    for (Map.Entry<String, Case> each : CASES.entrySet()) {
      if (AT.containsKey("only") && !List.of(AT.get("only").split(",")).contains(each.getKey())) continue;
      try {
        each.getValue().run();
        System.out.println("PASS " + each.getKey());
      } catch (Throwable problem) {
        allWell = false;
        System.out.println("FAIL " + each.getKey() + " " + String.valueOf(problem).replace('\n', ' '));
      }
      OPEN.forEach(ManagedChannel::shutdownNow);
      OPEN.clear();
    }
    for (String name : new String[] {"reflection", "broker-produce-consume", "broker-produce-stream"}) {
      System.out.println("SKIP " + name + " this client has no protobuf");
    }
    System.exit(allWell ? 0 : 1);
  }
}
