// The client of gRPC's published interop cases, against interop_server; prints what interop_client.py prints.
// Usage: interop_client.js PROXY:PORT AUTHORITY
'use strict';
const assert = require('node:assert');
const grpc = require('@grpc/grpc-js');

const { status } = grpc;
const INITIAL = 'x-grpc-test-echo-initial';
const TRAILING = 'x-grpc-test-echo-trailing-bin';
const SPECIAL = '\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n';
const asIs = (bytes) => bytes;
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), {
  'grpc.default_authority': process.argv[3], 'grpc.enable_http_proxy': 0, 'grpc.enable_retries': 0,
});
const path = (name) => `/grpc.testing.TestService/${name}`;
const request = (said, padding = 0) => Buffer.concat([Buffer.from(JSON.stringify(said) + '\n'), Buffer.alloc(padding)]);
const within = (seconds) => ({ deadline: Date.now() + seconds * 1000 });
const metadata = () => {
  const all = new grpc.Metadata();
  all.set(INITIAL, 'test_initial_metadata_value');
  all.set(TRAILING, Buffer.from([0xab, 0xab, 0xab]));
  return all;
};
const sizes = [27182, 8, 1828, 45904];
const answers = [31415, 9, 2653, 58979];

function unary(message, name = path('UnaryCall'), sent = new grpc.Metadata()) {
  return new Promise((done) => {
    const seen = {};
    const call = client.makeUnaryRequest(name, asIs, asIs, message, sent, within(20), (error, answer) => {
      seen.error = error;
      seen.answer = answer;
      // The status comes after the answer.
      setImmediate(() => done(seen));
    });
    call.on('metadata', (initial) => { seen.initial = initial; });
    call.on('status', (ended) => { seen.trailing = ended.metadata; });
  });
}

async function fails(seen, code, details) {
  const { error } = await seen;
  assert.ok(error, 'it succeeded');
  assert.strictEqual(error.code, code);
  if (details !== undefined) assert.strictEqual(error.details, details);
}

/** A duplex call whose next answer can be waited for. */
function duplex(options = within(20), sent = new grpc.Metadata()) {
  const call = client.makeBidiStreamRequest(path('FullDuplexCall'), asIs, asIs, sent, options);
  const seen = { call, got: [] };
  let wake = () => {};
  call.on('metadata', (initial) => { seen.initial = initial; });
  call.on('data', (answer) => { seen.got.push(answer); wake(); });
  call.on('error', () => {});
  seen.ended = new Promise((done) => call.on('status', (ended) => { seen.status = ended; done(ended); wake(); }));
  seen.ask = async (message) => {
    const before = seen.got.length;
    call.write(message);
    while (seen.got.length === before && !seen.status) await new Promise((done) => { wake = done; });
    return seen.got[before];
  };
  return seen;
}

const CASES = {
  async empty_unary() {
    assert.strictEqual((await unary(Buffer.alloc(0), path('EmptyCall'))).answer.length, 0);
  },
  async large_unary() {
    assert.deepStrictEqual((await unary(request({ size: 314159 }, 271828))).answer, Buffer.alloc(314159));
  },
  async client_streaming() {
    const answer = await new Promise((done, failed) => {
      const call = client.makeClientStreamRequest(path('StreamingInputCall'), asIs, asIs, new grpc.Metadata(), within(20),
        (error, got) => (error ? failed(error) : done(got)));
      for (const size of sizes) call.write(Buffer.alloc(size));
      call.end();
    });
    assert.strictEqual(answer.toString(), '74922');
  },
  async server_streaming() {
    const got = [];
    const call = client.makeServerStreamRequest(path('StreamingOutputCall'), asIs, asIs, request({ sizes: answers }), new grpc.Metadata(), within(20));
    call.on('data', (answer) => got.push(answer.length));
    await new Promise((done, failed) => { call.on('end', done); call.on('error', failed); });
    assert.deepStrictEqual(got, answers);
  },
  async ping_pong() {
    const one = duplex();
    for (const [at, size] of answers.entries()) {
      assert.strictEqual((await one.ask(request({ size }, sizes[at]))).length, size);
    }
    one.call.end();
    assert.strictEqual((await one.ended).code, status.OK);
    assert.strictEqual(one.got.length, 4);
  },
  async empty_stream() {
    const one = duplex();
    one.call.end();
    assert.strictEqual((await one.ended).code, status.OK);
    assert.strictEqual(one.got.length, 0);
  },
  async cancel_after_begin() {
    await fails(new Promise((done) => {
      const call = client.makeClientStreamRequest(path('StreamingInputCall'), asIs, asIs, new grpc.Metadata(), within(20),
        (error) => done({ error }));
      call.cancel();
    }), status.CANCELLED);
  },
  async cancel_after_first_response() {
    const one = duplex();
    assert.strictEqual((await one.ask(request({ size: 31415 }, 27182))).length, 31415);
    one.call.cancel();
    assert.strictEqual((await one.ended).code, status.CANCELLED);
  },
  async timeout_on_sleeping_server() {
    const one = duplex(within(0.3));
    await one.ask(request({ size: 1, sleep: 2 }, 27182));
    assert.strictEqual((await one.ended).code, status.DEADLINE_EXCEEDED);
  },
  async custom_metadata() {
    const sent = metadata();
    const check = (seen, trailing) => {
      assert.deepStrictEqual(seen.initial.get(INITIAL), sent.get(INITIAL));
      assert.deepStrictEqual(trailing.get(TRAILING), sent.get(TRAILING));
    };
    const seen = await unary(request({ size: 314159 }, 271828), path('UnaryCall'), sent);
    check(seen, seen.trailing);
    const one = duplex(within(20), sent);
    assert.strictEqual((await one.ask(request({ size: 314159 }, 271828))).length, 314159);
    one.call.end();
    check(one, (await one.ended).metadata);
  },
  async status_code_and_message() {
    const asked = request({ code: 2, message: 'test status message' });
    await fails(unary(asked), status.UNKNOWN, 'test status message');
    const one = duplex();
    await one.ask(asked);
    const ended = await one.ended;
    assert.deepStrictEqual([ended.code, ended.details], [status.UNKNOWN, 'test status message']);
  },
  async special_status_message() {
    await fails(unary(request({ code: 2, message: SPECIAL })), status.UNKNOWN, SPECIAL);
  },
  async unimplemented_method() {
    await fails(unary(Buffer.alloc(0), path('UnimplementedCall')), status.UNIMPLEMENTED);
  },
  async unimplemented_service() {
    await fails(unary(Buffer.alloc(0), '/grpc.testing.UnimplementedService/UnimplementedCall'), status.UNIMPLEMENTED);
  },
};

(async () => {
  for (const [name, run] of Object.entries(CASES)) {
    let wrong = null;
    try { await run(); } catch (error) { wrong = String(error).slice(0, 500); }
    console.log(JSON.stringify({ case: name, wrong }));
  }
  process.exit(0);
})();
