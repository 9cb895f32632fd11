// The server of gRPC's published interop cases, without protobuf: interop_server.py says what its messages are.
// Usage: interop_server.js ADDRESS:PORT
'use strict';
const grpc = require('@grpc/grpc-js');

const INITIAL = 'x-grpc-test-echo-initial';
const TRAILING = 'x-grpc-test-echo-trailing-bin';
const asIs = (bytes) => bytes;
const method = (name, requestStream, responseStream) => ({
  path: `/grpc.testing.TestService/${name}`, requestStream, responseStream,
  requestSerialize: asIs, requestDeserialize: asIs, responseSerialize: asIs, responseDeserialize: asIs,
});

function echo(call) {
  const trailing = new grpc.Metadata();
  const [initial] = call.metadata.get(INITIAL);
  if (initial !== undefined) {
    const metadata = new grpc.Metadata();
    metadata.set(INITIAL, initial);
    call.sendMetadata(metadata);
  }
  for (const value of call.metadata.get(TRAILING)) trailing.add(TRAILING, value);
  return trailing;
}

function said(request) {
  const end = request.indexOf(10);
  return JSON.parse(request.subarray(0, end < 0 ? request.length : end).toString() || '{}');
}

const server = new grpc.Server();
server.addService({
  EmptyCall: method('EmptyCall', false, false),
  UnaryCall: method('UnaryCall', false, false),
  StreamingInputCall: method('StreamingInputCall', true, false),
  StreamingOutputCall: method('StreamingOutputCall', false, true),
  FullDuplexCall: method('FullDuplexCall', true, true),
}, {
  EmptyCall: (call, done) => done(null, Buffer.alloc(0)),
  UnaryCall(call, done) {
    const trailing = echo(call);
    const asked = said(call.request);
    if (asked.code) return done({ code: asked.code, details: asked.message, metadata: trailing });
    done(null, Buffer.alloc(asked.size || 0), trailing);
  },
  StreamingInputCall(call, done) {
    let size = 0;
    call.on('data', (request) => { size += request.length; });
    call.on('end', () => done(null, Buffer.from(String(size))));
    call.on('error', () => {});
  },
  StreamingOutputCall(call) {
    for (const size of said(call.request).sizes) call.write(Buffer.alloc(size));
    call.end();
  },
  FullDuplexCall(call) {
    const trailing = echo(call);
    call.on('error', () => {});
    call.on('data', (request) => {
      const asked = said(request);
      if (asked.code) return call.emit('error', { code: asked.code, details: asked.message, metadata: trailing });
      setTimeout(() => call.write(Buffer.alloc(asked.size || 0)), (asked.sleep || 0) * 1000);
    });
    call.on('end', () => call.end(trailing));
  },
});
server.bindAsync(process.argv[2], grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) { console.error(String(error)); process.exit(1); }
  console.log('listening');
});
