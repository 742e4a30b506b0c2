// The cases of tests/conformance from Node: one line each, PASS NAME or FAIL NAME REASON.
// Arguments: name=value each, as of Addresses in server.py; proto=DIRECTORY of takhin/v1/takhin.proto; only=NAME,NAME.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const at = Object.fromEntries(process.argv.slice(2).map((each) => [
  each.slice(0, each.indexOf("=")), each.slice(each.indexOf("=") + 1)]));
const MIB = 1 << 20, LIMIT = 5 * MIB, FLOOD = 64 * 1024;
const code = grpc.status;
const cases = {};
let counter = 0;
const newName = () => `node-${process.pid}-${++counter}`;
const pass = (bytes) => bytes;
const full = (name) => (name.startsWith("/") ? name : `/conformance.v1.Conformance/${name}`);
const short = (value) => String(value).slice(0, 200);

function expect(found, wanted, what = "it") {
  const same = Buffer.isBuffer(wanted) ? wanted.equals(found) : found === wanted;
  if (!same) throw new Error(`${what} is ${short(found)}, not ${short(wanted)}`);
}

// A connection of its own; closed at the end of its case.
let open = [];
class Connection {
  constructor(address = at.plain, credentials = grpc.credentials.createInsecure(), more = {}) {
    this.client = new grpc.Client(address, credentials, {
      "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.use_local_subchannel_pool": 1,
      ...more });
    open.push(this.client);
  }

  // {code, details, metadata, message}, of a call that failed as well.
  unary(name, request = "", { metadata = {}, timeout_ms = 60000, onCall = () => {} } = {}) {
    return new Promise((resolve) => {
      const sent = new grpc.Metadata();
      for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
      let outcome, status;
      const done = () => status && outcome && resolve({ ...status, ...outcome });
      const options = timeout_ms ? { deadline: Date.now() + timeout_ms } : {};
      const call = this.client.makeUnaryRequest(
        full(name), pass, pass, Buffer.from(request), sent, options, (error, message) => {
          outcome = { message };
          done();
        });
      call.on("status", (found) => { status = found; done(); });
      onCall(call);
    });
  }

  async ok(name, request) {
    const found = await this.unary(name, request);
    expect(found.code, code.OK, `the code of ${name} (${found.details})`);
    return found.message;
  }

  async text(name, request) { return (await this.ok(name, request)).toString(); }

  async refused(name, request, wanted, options) {
    const found = await this.unary(name, request, options);
    expect(found.code, wanted, `the code of ${name} (${found.details})`);
    return found;
  }

  async lives() { expect(await this.text("Echo", "still"), "still"); }

  stream(name, request, timeout_ms = 60000) {
    return new Stream(this.client.makeServerStreamRequest(
      full(name), pass, pass, Buffer.from(request), { deadline: Date.now() + timeout_ms }));
  }

  bidi(name) {
    return new Stream(this.client.makeBidiStreamRequest(full(name), pass, pass, { deadline: Date.now() + 60000 }));
  }

  async wasCancelled(name) { expect((await this.text("AwaitEnd", name)).split(" ")[0], "cancelled", "the handler"); }
}

class Stream {
  constructor(call) {
    this.call = call;
    this.status = new Promise((resolve) => call.on("status", resolve));
    call.on("error", () => {});
    this.messages = call[Symbol.asyncIterator]();
  }

  // null at its end, however it ended.
  async read() {
    try {
      const { value, done } = await this.messages.next();
      return done ? null : value;
    } catch {
      return null;
    }
  }

  async text() { return String(await this.read()); }

  async rest() {
    const found = [];
    for (let each; (each = await this.read()) !== null;) found.push(each);
    return found;
  }

  async ends(count, wanted = code.OK) {
    const found = await this.rest();
    const status = await this.status;
    expect(status.code, wanted, `the code (${status.details})`);
    expect(found.length, count, "the number of messages");
    return found;
  }

  write(message) {
    return new Promise((resolve) => this.call.write(Buffer.from(message), resolve));
  }
}

const allBytes = (size) => Buffer.from(Uint8Array.from({ length: size }, (_, index) => index % 251));
const range = (count) => Array.from({ length: count }, (_, index) => index);

async function until(condition, what) {
  for (let turn = 0; turn < 3000; ++turn) {
    if (await condition()) return;
    await sleep(10);
  }
  throw new Error(`${what} did not come true`);
}

// Messages

cases["unary-echo"] = async () => expect(await new Connection().text("Echo", "hello"), "hello");
cases["unary-empty"] = async () => expect((await new Connection().ok("Echo", "")).length, 0);
cases["unary-4mib"] = async () => expect(await new Connection().ok("Echo", allBytes(4 * MIB)), allBytes(4 * MIB));
cases["unary-sizes"] = async () => {
  const channel = new Connection();
  const near = [16370, 65520].flatMap((base) => range(25).map((index) => base + index));
  for (const size of [1, 2, ...near, 131072, 262139, 262144, MIB - 5, MIB, MIB + 1]) {
    expect(await channel.ok("Echo", allBytes(size)), allBytes(size), `the message of ${size}`);
  }
};
cases["stream-count"] = async () => {
  const found = await new Connection().stream("Count", "1000 100 0").ends(1000);
  found.forEach((each, index) => expect(each.toString(), String(index).padEnd(100, ".")));
};
cases["stream-empty"] = async () => new Connection().stream("Count", "0 0 0").ends(0);
cases["stream-large"] = async () => {
  const found = await new Connection().stream("Count", `32 ${MIB} 0`).ends(32);
  found.forEach((each, index) => expect(each.toString(), String(index).padEnd(MIB, ".")));
};
cases["bidi-chat"] = async () => {
  const chat = new Connection().bidi("Chat");
  for (const index of range(200)) {
    await chat.write(String(index));
    expect(await chat.text(), String(index));
  }
  chat.call.end();
  await chat.ends(0);
};
cases["bidi-half-close"] = async () => {
  const hold = new Connection().bidi("Hold");
  for (const index of range(200)) await hold.write(String(index).repeat(index % 50));
  hold.call.end();
  (await hold.ends(200)).forEach((each, index) => expect(each.toString(), String(index).repeat(index % 50)));
};
cases["bidi-collect"] = async () => {
  const collect = new Connection().bidi("Collect");
  for (const _ of range(2000)) await collect.write("m".repeat(1000));
  collect.call.end();
  expect((await collect.ends(1))[0].toString(), "2000 2000000");
};
cases["interleaved-streams"] = async () => {
  const channel = new Connection();
  const streams = range(50).map(() => channel.bidi("Chat"));
  for (const turn of range(20)) {
    for (const [index, each] of streams.entries()) await each.write(`${turn}/${index}`.padEnd(index * 20, "."));
    for (const [index, each] of streams.entries()) expect(await each.text(), `${turn}/${index}`.padEnd(index * 20, "."));
  }
  for (const each of streams) {
    each.call.end();
    await each.ends(0);
  }
};
cases["concurrent-1000"] = async () => {
  const channel = new Connection();
  await channel.lives();
  const calls = range(1000).map((index) => (
    index % 2 ? channel.text("Echo", String(index)) : channel.text("Sleep", "300")));
  (await Promise.all(calls)).forEach((each, index) => expect(each, index % 2 ? String(index) : "slept"));
};

// Status and metadata

cases["error-unary"] = async () => {
  const found = await new Connection().refused("Fail", "TOPIC_NOT_FOUND\nno such thing", code.NOT_FOUND);
  expect(found.details, "no such thing");
};
cases["error-codes"] = async () => {
  const channel = new Connection();
  const codes = {
    MALFORMED_REQUEST: code.INVALID_ARGUMENT, TOPIC_NOT_FOUND: code.NOT_FOUND, TOPIC_EXISTS: code.ALREADY_EXISTS,
    OFFSET_OUT_OF_RANGE: code.OUT_OF_RANGE, GROUP_HAS_MEMBERS: code.FAILED_PRECONDITION,
    CALL_LIMIT: code.RESOURCE_EXHAUSTED, DRAINING: code.UNAVAILABLE, CORRUPT_BATCH: code.DATA_LOSS,
    PRODUCER_FENCED: code.ABORTED, ACK_TIMEOUT: code.DEADLINE_EXCEEDED, ACCESS_DENIED: code.PERMISSION_DENIED,
    CREDENTIALS_MISSING: code.UNAUTHENTICATED, INTERNAL_ERROR: code.INTERNAL };
  for (const [reason, wanted] of Object.entries(codes)) await channel.refused("Fail", `${reason}\ntext`, wanted);
};
cases["error-after-messages"] = async () => {
  await new Connection().stream("Count", "10 10000 0 RECORD_TOO_LARGE").ends(10, code.RESOURCE_EXHAUSTED);
};
cases["error-while-sending"] = async () => {
  const channel = new Connection();
  const failing = channel.bidi("FailAfterFirst");
  for (const _ of range(50)) failing.call.write(Buffer.alloc(1000));
  await failing.ends(0, code.ABORTED);
  await channel.lives();
};
cases["message-percent"] = async () => {
  const channel = new Connection();
  // Without one that begins with a space: Node's HTTP/2 drops such a header.
  const texts = ["100% 日本語 – ß €", "%", "%41 %zz", "😀".repeat(50)].map((each) => [each, each]);
  for (const [sent, told] of [...texts, ["tab\tline\nfeed\x7f", "tab\\tline\\nfeed\\x7f"]]) {
    expect((await channel.refused("Fail", `TOPIC_EXISTS\n${sent}`, code.ALREADY_EXISTS)).details, told);
  }
};
cases["status-details"] = async () => {
  const found = await new Connection().refused("Fail", "TOPIC_EXISTS\nschön", code.ALREADY_EXISTS);
  const details = found.metadata.get("grpc-status-details-bin")[0];
  for (const part of ["schön", "google.rpc.ErrorInfo", "TOPIC_EXISTS", "takhin", "planted"]) {
    expect(details.includes(part), true, `${part} in the details`);
  }
};
cases["unknown-method"] = async () => {
  const channel = new Connection();
  await channel.refused("Nothing", "", code.UNIMPLEMENTED);
  await channel.lives();
};
cases["unknown-service"] = async () => {
  const channel = new Connection();
  await channel.refused("/none.v1.None/Echo", "", code.UNIMPLEMENTED);
  await channel.lives();
};
async function arrive(metadata) {
  const found = await new Connection().unary("Metadata", "", { metadata });
  expect(found.code, code.OK, found.details);
  for (const [key, value] of Object.entries(metadata)) {
    const line = `\n${key.toLowerCase()}=${Buffer.from(value).toString("hex")}\n`;
    expect(`\n${found.message}`.includes(line), true, `${key} arrives`);
  }
}
cases["metadata-ascii"] = async () => arrive({
  "X-One": "1", "x-long": "v".repeat(3000), "x-printable": range(94).map((each) => String.fromCharCode(33 + each)).join("") });
cases["metadata-binary"] = async () => arrive({
  "x-all-bin": Buffer.from(range(256)), "x-one-bin": Buffer.from([255]), "x-two-bin": Buffer.from([255, 255]),
  "x-nul-bin": Buffer.from([0]), "x-line-bin": Buffer.from("\r\n"), "x-comma-bin": Buffer.from(",") });
cases["metadata-too-large"] = async () => {
  const channel = new Connection();
  await channel.lives();
  await channel.refused("Echo", "", code.RESOURCE_EXHAUSTED, { metadata: { "x-large": "l".repeat(40000) } });
  await channel.lives();
};
cases["request-id"] = async () => {
  const channel = new Connection();
  for (const name of ["RequestId", "Fail"]) {
    const found = await channel.unary(name, "TOPIC_EXISTS\n", { metadata: { "x-request-id": "mine-1" } });
    expect(found.metadata.get("x-request-id")[0], "mine-1", `the request id of ${name}`);
  }
  expect((await channel.unary("Fail", "TOPIC_EXISTS\n")).metadata.get("x-request-id").length, 1);
};

// Time and cancellation

cases.deadline = async () => {
  const channel = new Connection(), one = newName(), two = newName();
  await channel.lives();
  await channel.refused("Hang", one, code.DEADLINE_EXCEEDED, { timeout_ms: 500 });
  await channel.stream("HangStream", two, 500).ends(1, code.DEADLINE_EXCEEDED);
  await channel.wasCancelled(one);
  await channel.wasCancelled(two);
};
cases["deadline-known"] = async () => {
  const channel = new Connection();
  const left_ms = Number(await channel.text("Remaining"));
  expect(left_ms > 0 && left_ms <= 60200, true, `${left_ms} within the deadline`);
  expect((await channel.unary("Remaining", "", { timeout_ms: 0 })).message.toString(), "none");
};
cases["cancel-unary"] = async () => {
  const channel = new Connection(), name = newName();
  let call;
  const outcome = channel.unary("Hang", name, { onCall: (made) => { call = made; } });
  await until(async () => (await channel.text("Journal", name)) === "begun", "the call's begin");
  call.cancel();
  expect((await outcome).code, code.CANCELLED);
  await channel.wasCancelled(name);
};
async function cancelled(channel, stream, name) {
  expect(await stream.text(), "begun");
  stream.call.cancel();
  await stream.ends(0, code.CANCELLED);
  await channel.wasCancelled(name);
}
cases["cancel-stream"] = async () => {
  const channel = new Connection(), name = newName();
  await cancelled(channel, channel.stream("HangStream", name), name);
};
cases["cancel-bidi"] = async () => {
  const channel = new Connection(), name = newName(), stream = channel.bidi("HangBidi");
  await stream.write(name);
  await cancelled(channel, stream, name);
};

// Compression, limits, flow control

const GZIP = { "grpc.default_compression_algorithm": 2 };
const plainly = grpc.credentials.createInsecure;
cases["gzip-request"] = async () => {
  const channel = new Connection(at.plain, plainly(), GZIP);
  for (const message of [Buffer.alloc(0), Buffer.from("short"), Buffer.alloc(MIB, "z"), allBytes(256000)]) {
    expect(await channel.ok("Echo", message), message);
  }
  const chat = channel.bidi("Chat");
  for (const index of range(20)) {
    await chat.write(String(index).repeat(5000));
    expect(await chat.text(), String(index).repeat(5000));
  }
  chat.call.end();
  await chat.ends(0);
};
cases["gzip-response"] = async () => {
  const channel = new Connection(at.gzip);
  for (const size of [0, 1, 100, 4 * MIB]) expect(await channel.ok("Big", String(size)), Buffer.alloc(size, "b"));
  await channel.stream("Count", "100 5000 0").ends(100);
};
cases["limit-request"] = async () => {
  const channel = new Connection(), zipping = new Connection(at.plain, plainly(), GZIP);
  expect((await channel.ok("Echo", Buffer.alloc(LIMIT))).length, LIMIT);
  await channel.refused("Echo", Buffer.alloc(LIMIT + 1), code.RESOURCE_EXHAUSTED);
  await channel.lives();
  await zipping.refused("Echo", Buffer.alloc(LIMIT + 1), code.RESOURCE_EXHAUSTED);
  await zipping.lives();
};
cases["limit-response"] = async () => {
  const channel = new Connection();
  expect((await channel.ok("Big", String(LIMIT))).length, LIMIT);
  await channel.refused("Big", String(LIMIT + 1), code.RESOURCE_EXHAUSTED);
  await channel.lives();
};
cases["slow-reader"] = async () => {
  const channel = new Connection(), name = newName(), flood = channel.stream("Flood", name);
  expect((await flood.read()).length, FLOOD);
  let before = "", same = 0;
  for (let look = 0; same < 3; ++look) {
    expect(look < 300, true, "the flood stops");
    await sleep(200);
    const now = await channel.text("Journal", name);
    same = now === before ? same + 1 : 0;
    before = now;
  }
  const written = Number(before.split(" ")[1]);
  expect(written * FLOOD < 256 * MIB, true, `${written} messages are few`);
  expect((await channel.ok("Big", String(MIB))).length, MIB);
  for (const _ of range(written + 200)) expect((await flood.read()).length, FLOOD);
  flood.call.cancel();
  await channel.wasCancelled(name);
};

// The life of a connection

cases["age-drain"] = async () => {
  const channel = new Connection(at.age), peers = new Set();
  await Promise.all(range(8).map(async () => {
    for (let turn = 0; peers.size < 5; ++turn) {
      expect(turn < 10000, true, "connections get old");
      peers.add(await channel.text("Peer"));
      expect(await channel.text("Sleep", "5"), "slept");
    }
  }));
};
cases["age-stream"] = async () => {
  const channel = new Connection(at.age);
  const first = await channel.text("Peer");
  const count = channel.stream("Count", "150 10 10"), chat = channel.bidi("Chat");
  await chat.write("before");
  expect(await chat.text(), "before");
  await until(async () => (await channel.text("Peer")) !== first, "another connection");
  await chat.write("after");
  expect(await chat.text(), "after");
  chat.call.end();
  await chat.ends(0);
  await count.ends(150);
};
cases["graceful-stop"] = async () => {
  const control = new Connection(), name = newName();
  const channel = new Connection(await control.text("Fresh"));
  const count = channel.stream("Count", "100 10 10");
  expect((await count.read()).length, 10);
  const slept = channel.text("Sleep", `1000 ${name}`);
  await until(async () => (await control.text("Journal", name)) !== "", "the call's begin");
  expect(await channel.text("StopSoon"), "stopping");
  expect(await slept, "slept");
  await count.ends(99);
  await channel.refused("Echo", "x", code.UNAVAILABLE, { timeout_ms: 20000 });
};
cases.keepalive = async () => {
  const channel = new Connection(at.pings, plainly(), {
    "grpc.keepalive_time_ms": 500, "grpc.keepalive_timeout_ms": 20000, "grpc.keepalive_permit_without_calls": 1 });
  const peer = await channel.text("Peer");
  expect(await channel.text("Sleep", "3000"), "slept");
  await sleep(1000);
  expect(await channel.text("Peer"), peer, "the connection");
};

// TLS

const file = (name) => readFileSync(`${at.directory}/${name}`);
const secured = (withClient) => grpc.credentials.createSsl(
  file("ca.pem"), ...(withClient ? [file("client.key"), file("client.pem")] : []));
cases.tls = async () => {
  const channel = new Connection(at.tls, secured(false));
  expect(await channel.ok("Echo", allBytes(2 * MIB)), allBytes(2 * MIB));
  expect(await channel.text("Identity"), "none");
};
cases.mtls = async () => expect(await new Connection(at.mtls, secured(true)).ok("Identity"), file("client.pem"));
cases["mtls-missing"] = async () => {
  await new Connection(at.mtls, secured(false)).refused("Echo", "x", code.UNAVAILABLE, { timeout_ms: 20000 });
};

// The broker

const field = (number, text) => Buffer.concat([Buffer.from([number << 3 | 2, text.length]), Buffer.from(text)]);
cases["health-check"] = async () => {
  const channel = new Connection(at.broker), check = "/grpc.health.v1.Health/Check";
  expect(await channel.ok(check), Buffer.from([8, 1]));
  expect(await channel.ok(check, field(1, "takhin.v1.TakhinService")), Buffer.from([8, 1]));
  await channel.refused(check, field(1, "none"), code.NOT_FOUND);
};
cases["health-watch"] = async () => {
  const watch = new Connection(at.broker).stream("/grpc.health.v1.Health/Watch", "");
  expect(await watch.read(), Buffer.from([8, 1]));
  watch.call.cancel();
  await watch.ends(0, code.CANCELLED);
};
cases.reflection = async () => {
  const info = new Connection(at.broker).bidi("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
  await info.write(field(7, ""));
  expect((await info.read()).includes("takhin.v1.TakhinService"), true, "the broker's service is listed");
  await info.write(field(4, "takhin.v1.TakhinService"));
  expect((await info.read()).includes("ProduceMessageRequest"), true, "the file comes");
  info.call.end();
  await info.ends(0);
};

const service = () => loader.loadSync("takhin/v1/takhin.proto", { includeDirs: [at.proto], longs: Number, keepCase: true })[
  "takhin.v1.TakhinService"];
class Broker {
  constructor() {
    this.methods = service();
    this.channel = new Connection(at.broker);
    this.topic = newName();
  }

  path(name) { return this.methods[name].path; }
  request(name, fields) { return this.methods[name].requestSerialize(fields); }
  response(name, bytes) { return this.methods[name].responseDeserialize(bytes); }
  record(index) {
    return this.request("ProduceMessage", {
      topic: this.topic, record: { value: Buffer.from(String(index)) }, required_acks: 1 });
  }

  async create() {
    const request = this.request("CreateTopic", { name: this.topic, num_partitions: 1 });
    await this.channel.ok(this.path("CreateTopic"), request);
    return this;
  }

  async holds(count) {
    const request = this.request("ConsumeMessages", { topic: this.topic, offset: -1, until_end: true });
    const stream = this.channel.stream(this.path("ConsumeMessages"), request);
    const records = (await stream.rest()).flatMap((each) => this.response("ConsumeMessages", each).records);
    expect((await stream.status).code, code.OK);
    expect(records.length, count, "the number of records");
    records.forEach((each, index) => expect(each.value.toString(), String(index)));
  }
}
cases["broker-produce-consume"] = async () => {
  const broker = await new Broker().create();
  for (const index of range(100)) {
    const answer = await broker.channel.ok(broker.path("ProduceMessage"), broker.record(index));
    expect(broker.response("ProduceMessage", answer).offset ?? 0, index, "the offset");
  }
  await broker.holds(100);
};
cases["broker-produce-stream"] = async () => {
  const broker = await new Broker().create();
  const produce = broker.channel.bidi(broker.path("ProduceMessageStream"));
  for (const index of range(1000)) produce.call.write(broker.record(index));
  produce.call.end();
  const answers = await produce.ends(1000);
  answers.forEach((each, index) => expect(broker.response("ProduceMessage", each).offset ?? 0, index, "the offset"));
  await broker.holds(1000);
};

let exit = 0;
for (const [name, run] of Object.entries(cases)) {
  if (at.only && !at.only.split(",").includes(name)) continue;
  try {
    await run();
    console.log(`PASS ${name}`);
  } catch (problem) {
    exit = 1;
    console.log(`FAIL ${name} ${String(problem?.message ?? problem).replaceAll("\n", " ")}`);
  }
  open.forEach((each) => each.close());
  open = [];
}
process.exit(exit);
