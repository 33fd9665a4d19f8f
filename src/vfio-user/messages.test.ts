import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isDmaError } from '../errors.js';
import type { DmaAccess } from '../dma/address-space.js';
import * as m from './messages.js';

/** What a framer makes of the first `size` bytes. */
function message(bytes: Uint8Array, size: number): m.Message {
  assert.equal(m.get32(bytes, 4), size);
  return {
    id: m.get16(bytes, 0),
    command: m.get16(bytes, 2),
    flags: m.get32(bytes, 8),
    errno: m.get32(bytes, 12),
    payload: bytes.slice(m.HEADER_SIZE, size),
    fds: [],
  };
}

const id = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffffffff });
const address = fc.integer({ min: 0, max: 2 ** 52 });
const length = fc.integer({ min: 1, max: 2 ** 40 });
const einval = (error: unknown): boolean => isDmaError(error, 'EINVAL');

test('64-bit fields keep every address, and those that are none stay so', () => {
  const bytes = new Uint8Array(8);
  fc.assert(
    fc.property(fc.maxSafeInteger(), (value) => {
      m.put64(bytes, 0, Math.abs(value));
      assert.equal(m.get64(bytes, 0), Math.abs(value));
      assert.equal(new DataView(bytes.buffer).getBigUint64(0, true), BigInt(Math.abs(value)));
    }),
  );
  fc.assert(
    fc.property(fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }), (value) => {
      new DataView(bytes.buffer).setBigUint64(0, value, true);
      assert.ok(!Number.isSafeInteger(m.get64(bytes, 0)));
    }),
  );
});

test('DMA_MAP and DMA_UNMAP come out as they went in', () => {
  const out = new Uint8Array(64);
  const access = fc.constantFrom<DmaAccess>('read', 'write', 'read-write');
  fc.assert(
    fc.property(id, address, length, access, address, (i, iova, bytes, may, offset) => {
      const map = message(out, m.encodeDmaMap(out, i, iova, bytes, may, offset));
      assert.equal(map.id, i);
      assert.deepEqual(m.decodeDmaMap(map), {
        iova,
        length: bytes,
        offset,
        readable: may !== 'write',
        writable: may !== 'read',
      });
      const unmap = message(out, m.encodeDmaUnmap(out, i, iova, bytes));
      assert.deepEqual(m.decodeDmaUnmap(unmap), { iova, length: bytes });
    }),
  );
});

test('impossible DMA regions are EINVAL', () => {
  const out = new Uint8Array(64);
  const size = m.encodeDmaMap(out, 1, 4096, 4096, 'read', 0);
  const changed = (at: number, value: number): m.Message => {
    const copy = out.slice();
    m.put32(copy, m.HEADER_SIZE + at, value);
    return message(copy, size);
  };
  for (const [at, value] of [
    [0, 31],
    [4, 0x10],
    [24, 0],
    [20, 0xffffffff],
    [28, 0x00400000],
  ])
    assert.throws(() => m.decodeDmaMap(changed(at, value)), einval, `offset ${at} = ${value}`);
  assert.throws(() => m.decodeDmaMap({ ...message(out, size), payload: out.slice(16, 47) }), einval);
});

test('"unmap all" has no range', () => {
  const out = new Uint8Array(64);
  const size = m.encodeDmaUnmap(out, 1, 0, 0);
  m.put32(out, 20, 2);
  assert.equal(m.decodeDmaUnmap(message(out, size)), 'all');
  m.put64(out, 24, 4096);
  assert.throws(() => m.decodeDmaUnmap(message(out, size)), einval);
  m.put32(out, 20, 1);
  assert.throws(() => m.decodeDmaUnmap(message(out, size)), einval);
});

test('VERSION keeps capabilities, and what is not mentioned has its default', () => {
  const out = new Uint8Array(4096);
  const capabilities = fc.record(
    {
      maxMsgFds: fc.nat(1000),
      maxDataXferSize: fc.integer({ min: 1, max: m.MAX_DATA }),
      maxDmaMaps: fc.integer({ min: 1, max: 65535 }),
      pgsizes: fc.constantFrom(4096, 65536),
      twinSocket: fc.constantFrom(undefined, { fdIndex: undefined }, { fdIndex: 0 }),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(capabilities, fc.nat(5), (caps, minor) => {
      const payload = m.encodeVersion({ major: 0, minor, capabilities: caps });
      assert.ok(payload.length <= 214 - m.HEADER_SIZE, 'a reply that the strictest client takes');
      out.set(payload, m.HEADER_SIZE);
      const size = m.putReply(out, 7, m.COMMAND.VERSION, payload.length);
      assert.deepEqual(m.decodeVersion(message(out, size)), { major: 0, minor, capabilities: caps });
    }),
  );
  const bare = { id: 0, command: 1, flags: 0, errno: 0, payload: new Uint8Array([0, 0, 1, 0]), fds: [] };
  assert.deepEqual(m.decodeVersion(bare).capabilities, m.DEFAULT_CAPABILITIES);
});

test('VERSION is lenient with what it does not know and strict with what it does', () => {
  const decode = (text: string): m.Capabilities =>
    m.decodeVersion({
      id: 0,
      command: 1,
      flags: 0,
      errno: 0,
      payload: Buffer.concat([new Uint8Array(4), Buffer.from(text)]),
      fds: [],
    }).capabilities;
  assert.deepEqual(decode('{}\0'), m.DEFAULT_CAPABILITIES);
  assert.deepEqual(decode('{"capabilities":{"migration":{"pgsize":4096},"x":[1]},"y":2}\0'), m.DEFAULT_CAPABILITIES);
  assert.deepEqual(decode('{"capabilities":{"twin_socket":{"supported":false}}}\0'), m.DEFAULT_CAPABILITIES);
  // Sets of page sizes have 64 bits; the lowest is what counts.
  for (const [digits, size] of [
    [0xffff_ffff_ffff_f000n, 4096],
    [2n ** 64n - 65536n, 65536],
    [2n ** 63n + 2n ** 21n, 2 ** 21],
    [2n ** 52n + 4096n, 2 ** 52 + 4096],
  ] as const)
    assert.equal(decode(`{"capabilities":{"pgsizes":${digits}}}\0`).pgsizes, size);
  for (const text of [
    '{}',
    '{"capabilities":{"pgsizes":0}}\0',
    '{"capabilities":{"pgsizes":-4096}}\0',
    '{"capabilities":{"pgsizes":"4096"}}\0',
    '{"capabilities":{"pgsizes":1e300}}\0',
    `{"capabilities":{"pgsizes":${2n ** 63n}}}\0`,
    '{"capabilities":[]}\0',
    '[]\0',
    'null\0',
    '{"capabilities":{"max_msg_fds":"8"}}\0',
    '{"capabilities":{"max_msg_fds":-1}}\0',
    '{"capabilities":{"max_msg_fds":1.5}}\0',
    '{"capabilities":{"max_data_xfer_size":0}}\0',
    '{"capabilities":{"max_dma_maps":1e300}}\0',
    '{"capabilities":{"twin_socket":true}}\0',
    '{"capabilities":{"twin_socket":{"supported":1}}}\0',
    '{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}\0',
    '{\0',
    '\xff\xfe\0',
    `${'['.repeat(100_000)}\0`,
    `${'['.repeat(10_000)}\0`,
  ])
    assert.throws(() => decode(text), einval, text.slice(0, 60));
});

test('region information keeps its areas, and tells what they need when there is no room', () => {
  const out = new Uint8Array(4096);
  const areas = fc.array(
    fc.record({ offset: fc.nat(1000), length: fc.integer({ min: 1, max: 1000 }) }, { noNullPrototype: true }),
    {
      maxLength: 20,
    },
  );
  fc.assert(
    fc.property(areas, fc.boolean(), fc.nat(500), (list, writable, room) => {
      const region = {
        index: 3,
        size: 4096,
        readable: true,
        writable,
        mappable: list.length > 0,
        fdOffset: 8192,
        areas: list,
        argsz: 0,
      };
      const needed = 32 + (list.length === 0 ? 0 : 16 + list.length * 16);
      const whole = m.decodeRegionInfo(message(out, m.encodeRegionInfo(out, 1, region, 4096)));
      assert.deepEqual(whole, { ...region, argsz: needed });
      const cut = message(out, m.encodeRegionInfo(out, 1, region, room));
      assert.ok(cut.payload.length <= Math.max(32, room));
      assert.equal(m.decodeRegionInfo(cut).argsz, needed);
    }),
  );
});

test('capability chains that loop, leave the message or name areas outside are EINVAL', () => {
  const out = new Uint8Array(4096);
  const region = { index: 0, size: 4096, readable: true, writable: true, mappable: true, fdOffset: 0, argsz: 0 };
  const size = m.encodeRegionInfo(out, 1, { ...region, areas: [{ offset: 0, length: 4096 }] }, 4096);
  const changed = (at: number, value: number): m.Message => {
    const copy = out.slice();
    m.put32(copy, m.HEADER_SIZE + at, value);
    return message(copy, size);
  };
  for (const [at, value] of [
    [12, 31],
    [12, 79],
    [12, 0xfffffff0],
    [32 + 4, 32],
    [32 + 8, 2],
    [32 + 8, 0xffffffff],
    [48 + 0, 1],
    [48 + 12, 1],
  ])
    assert.throws(() => m.decodeRegionInfo(changed(at, value)), einval, `offset ${at} = ${value}`);
});

test('interrupt requests come out as they went in', () => {
  const out = new Uint8Array(4096);
  const data = fc.oneof(fc.constantFrom('none' as const, 'eventfd' as const), fc.uint8Array({ maxLength: 64 }));
  const action = fc.constantFrom('mask' as const, 'unmask' as const, 'trigger' as const);
  fc.assert(
    fc.property(id, u32, u32, fc.nat(64), action, data, (i, index, start, count, act, what) => {
      const irqs = { index, start, count: typeof what === 'string' ? count : what.length, action: act, data: what };
      const decoded = m.decodeSetIrqs(message(out, m.encodeSetIrqs(out, i, irqs)));
      assert.deepEqual(
        { ...decoded, data: typeof decoded.data === 'string' ? decoded.data : Uint8Array.from(decoded.data) },
        irqs,
      );
    }),
  );
  const size = m.encodeSetIrqs(out, 1, { index: 0, start: 0, count: 1, action: 'trigger', data: 'none' });
  for (const flags of [0, 1, 32, 3 | 32, 1 | 8 | 16, 1 | 32 | 64]) {
    m.put32(out, 20, flags);
    assert.throws(() => m.decodeSetIrqs(message(out, size)), einval, `flags ${flags}`);
  }
});

test('accesses carry their data', () => {
  const out = new Uint8Array(4096);
  fc.assert(
    fc.property(id, address, u32, fc.uint8Array({ minLength: 1, maxLength: 1024 }), (i, offset, region, bytes) => {
      const write = message(out, m.encodeRegionWrite(out, i, region, offset, bytes, false));
      assert.deepEqual(m.decodeRegionAccess(write), { offset, region, count: bytes.length });
      assert.deepEqual(write.payload.slice(16), bytes);
      const dma = message(out, m.encodeDmaWrite(out, i, offset, bytes));
      assert.deepEqual(m.decodeDmaAccess(dma), { iova: offset, count: bytes.length });
      assert.deepEqual(dma.payload.slice(16), bytes);
      const read = message(out, m.encodeDmaRead(out, i, offset, bytes.length));
      const reply = message(out, m.encodeDmaReadReply(out, read, offset, bytes));
      assert.equal(reply.flags, m.FLAG.REPLY);
      assert.deepEqual(reply.payload.slice(16), bytes);
    }),
  );
  const short = message(out, m.encodeDmaWrite(out, 1, 0, new Uint8Array(8)));
  assert.throws(() => m.decodeDmaAccess({ ...short, payload: short.payload.slice(0, 23) }), einval);
  m.encodeDmaRead(out, 1, 0, m.MAX_DATA + 1);
  assert.throws(() => m.decodeDmaAccess(message(out, 32)), einval);
  m.encodeRegionRead(out, 1, 0, 0, m.MAX_DATA + 1);
  assert.throws(() => m.decodeRegionAccess(message(out, 32)), einval);
});

test('an error reply names the other side’s error', () => {
  const out = new Uint8Array(16);
  assert.equal(m.errorOfReply(message(out, m.putReply(out, 1, 2, 0))), undefined);
  const error = m.errorOfReply(message(out, m.putErrorReply(out, 1, m.COMMAND.DMA_MAP, 'ENOSPC')));
  assert.ok(isDmaError(error, 'ENOSPC'));
  assert.equal(error.operation, 'vfio-user DMA_MAP');
  m.put32(out, 12, 0);
  assert.equal(m.errorOfReply(message(out, 16))?.code, 'EIO');
  m.put32(out, 12, 122);
  assert.equal(m.errorOfReply(message(out, 16))?.errno, 122);
});

test('no decoder reads past a short payload', () => {
  const decoders = [
    m.decodeVersion,
    m.decodeDmaMap,
    m.decodeDmaUnmap,
    m.decodeDeviceInfo,
    m.decodeRegionInfo,
    m.decodeIrqInfo,
    m.decodeSetIrqs,
    m.decodeRegionAccess,
    m.decodeDmaAccess,
  ];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), fc.integer({ min: 1, max: 13 }), (payload, command) => {
      for (const decode of decoders) {
        try {
          decode({ id: 0, command, flags: 0, errno: 0, payload, fds: [] });
        } catch (error) {
          assert.ok(einval(error), String(error));
        }
      }
    }),
  );
});
