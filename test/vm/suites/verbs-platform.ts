/** The port for RDMA verbs on Soft-RoCE, the kernel's software RDMA device: rxe0 on one end of a veth pair, talking to itself. */
import { execFileSync } from 'node:child_process';
import { after, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../../src/errors.js';
import { openPlatform } from '../../../src/platform/open.js';
import { trackingPlatform } from '../../fakes/platform/platforms.js';
import * as devices from '../../../src/platform/rdma/abi/devices.js';
import {
  IBV_EVENT_DEVICE_FATAL,
  IBV_EVENT_PORT_ACTIVE,
  IBV_EVENT_PORT_ERR,
} from '../../../src/platform/rdma/abi/events.js';
import * as memoryAbi from '../../../src/platform/rdma/abi/memory.js';
import * as queues from '../../../src/platform/rdma/abi/queues.js';
import * as work from '../../../src/platform/rdma/abi/requests.js';
import type {
  VerbsAsyncEvent,
  VerbsChannel,
  VerbsContext,
  VerbsCq,
  VerbsMr,
  VerbsPd,
  VerbsQp,
} from '../../../src/platform/rdma/verbs-types.js';
import {
  Completions,
  completionStatusName,
  ReceiveRequests,
  SendRequests,
} from '../../../src/platform/rdma/verbs-work.js';
import type { Va } from '../../../src/units.js';

const NETDEV = 'anyrx0';
const { IBV_SEND_SIGNALED: SIGNALED } = work;
const LOCAL = memoryAbi.IBV_ACCESS_LOCAL_WRITE;
const REMOTE =
  LOCAL |
  memoryAbi.IBV_ACCESS_REMOTE_READ |
  memoryAbi.IBV_ACCESS_REMOTE_WRITE |
  memoryAbi.IBV_ACCESS_REMOTE_ATOMIC |
  memoryAbi.IBV_ACCESS_MW_BIND;
const QKEY = 0x11111111;

const platform = trackingPlatform(openPlatform());
const { memory, readiness, verbs } = platform;

function sh(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

before(() => {
  sh('ip', 'link', 'add', NETDEV, 'type', 'veth', 'peer', 'name', 'anyrx1');
  sh('ip', 'addr', 'add', '192.0.2.1/24', 'dev', NETDEV);
  sh('ip', 'link', 'set', NETDEV, 'up');
  sh('ip', 'link', 'set', 'anyrx1', 'up');
  sh('rdma', 'link', 'add', 'rxe0', 'type', 'rxe', 'netdev', NETDEV);
  pause(() => verbs.devices().some(({ name }) => name === 'rxe0'));
});

after(() => {
  sh('ip', 'link', 'del', NETDEV);
});

/** Blocks until `done`, in small steps; fails after 20 s. */
function pause(done: () => boolean): void {
  const end = Date.now() + 20_000;
  while (!done()) {
    assert.ok(Date.now() < end, 'it does not come');
    readiness.wait([], 1);
  }
}

/** What a test needs of one device; all of it is given back, newest first, when the test ends. */
class Bench {
  readonly context: VerbsContext;
  readonly pd: VerbsPd;
  readonly cq: VerbsCq;
  readonly channel: VerbsChannel;
  readonly completions = new Completions(memory, 16);
  readonly #undo: (() => void)[] = [];
  readonly #gid: string;
  readonly #gidIndex: number;

  constructor() {
    this.context = this.own(verbs.open('rxe0'), verbs.close);
    this.pd = this.own(verbs.allocatePd(this.context), verbs.deallocatePd);
    this.channel = this.own(verbs.createChannel(this.context), verbs.destroyChannel);
    this.cq = this.own(verbs.createCq(this.context, 64, this.channel), verbs.destroyCq);
    const gid = verbs.gids(this.context).find(({ gid, type }) => type === 'roce-v2' && gid.endsWith(':ffff:c000:0201'));
    assert.ok(gid !== undefined);
    this.#gid = gid.gid;
    this.#gidIndex = gid.index;
  }

  own<T>(made: T, giveBack: (made: T) => void): T {
    this.#undo.push(() => giveBack(made));
    return made;
  }

  [Symbol.dispose](): void {
    for (const step of this.#undo.reverse()) step();
    assert.deepEqual(platform.leaks(), []);
  }

  memory(length: number, access: number): { va: Va; bytes: Uint8Array; mr: VerbsMr } {
    const va = this.own(memory.map({ length }), (each) => memory.unmap(each, length));
    const view = this.own(memory.view(va, length), memory.detach);
    // A test may give it back before.
    const mr = this.own(verbs.registerMemory(this.pd, { va, length, access }), (each) => {
      if (each.address !== 0) verbs.deregisterMemory(each);
    });
    return { va, bytes: new Uint8Array(view), mr };
  }

  get path() {
    return { port: 1, route: { gid: this.#gid, localIndex: this.#gidIndex } };
  }

  qp(type: 'rc' | 'ud', more: { signalAll?: boolean } = {}): VerbsQp {
    const qp = this.own(
      verbs.createQp(this.pd, {
        type,
        sendCq: this.cq,
        receiveCq: this.cq,
        sends: 16,
        receives: 16,
        sendSges: 4,
        receiveSges: 4,
        inline: 64,
        ...more,
      }),
      verbs.destroyQp,
    );
    const base = { state: queues.IBV_QPS_INIT, pkeyIndex: 0, port: 1 };
    verbs.modifyQp(
      qp,
      type === 'ud' ? { ...base, qkey: QKEY } : { ...base, access: REMOTE & ~memoryAbi.IBV_ACCESS_MW_BIND },
    );
    return qp;
  }

  /** Two queue pairs of one reliable connection. */
  pair(): [VerbsQp, VerbsQp] {
    const a = this.qp('rc');
    const b = this.qp('rc');
    for (const [one, other] of [
      [a, b],
      [b, a],
    ]) {
      verbs.modifyQp(one, {
        state: queues.IBV_QPS_RTR,
        path: this.path,
        mtu: 1024,
        peer: other.number,
        receivePsn: other.number & 0xffff,
        responderDepth: 4,
        minRnrTimer: 12,
      });
      verbs.modifyQp(one, {
        state: queues.IBV_QPS_RTS,
        timeout: 18,
        retries: 7,
        rnrRetries: 7,
        sendPsn: one.number & 0xffff,
        initiatorDepth: 4,
      });
    }
    return [a, b];
  }

  datagrams(): VerbsQp {
    const qp = this.qp('ud');
    verbs.modifyQp(qp, { state: queues.IBV_QPS_RTR });
    verbs.modifyQp(qp, { state: queues.IBV_QPS_RTS, sendPsn: 1 });
    return qp;
  }

  /** Waits for `count` completions and tells each as `id status`, or `id` when it went well. */
  done(count: number): string[] {
    const lines: string[] = [];
    pause(() => {
      const came = verbs.pollCq(this.cq, this.completions);
      for (let i = 0; i < came; i++) {
        const status = this.completions.status(i);
        lines.push(
          `${this.completions.id(i)}${status === work.IBV_WC_SUCCESS ? '' : ` ${completionStatusName(status)}`}`,
        );
      }
      return lines.length >= count;
    });
    assert.equal(lines.length, count);
    return lines;
  }
}

test('the device, its port and its addresses', () => {
  const device = verbs.devices().find(({ name }) => name === 'rxe0');
  assert.ok(device !== undefined);
  assert.deepEqual([device.node, device.transport, device.parent], ['ca', 'ib', undefined]);
  assert.match(device.guid, /^[0-9a-f]{4}(:[0-9a-f]{4}){3}$/);
  assert.match(device.devicePath, /^\/dev\/infiniband\/uverbs\d+$/);
  using bench = new Bench();
  const attributes = verbs.queryDevice(bench.context);
  assert.equal(attributes.nodeGuid, device.guid);
  assert.equal(attributes.ports, 1);
  assert.ok(attributes.pageSizes.includes(4096));
  assert.ok(attributes.maxMrs > 1 && attributes.maxMrLength >= 2 ** 32 && attributes.maxSges >= 4);
  assert.notEqual(attributes.atomics, 'none');
  assert.notEqual(attributes.capabilities & devices.IBV_DEVICE_MEM_WINDOW, 0);
  const port = verbs.queryPort(bench.context, 1);
  assert.deepEqual([port.state, port.linkLayer], ['active', 'ethernet']);
  assert.ok(port.activeMtu >= 1024 && port.maxMtu >= port.activeMtu && port.gids > 0);
  assert.throws(() => verbs.queryPort(bench.context, 9), { code: 'EINVAL' });
  const gids = verbs.gids(bench.context);
  assert.ok(gids.some(({ port, gid }) => port === 1 && gid === '0000:0000:0000:0000:0000:ffff:c000:0201'));
  assert.ok(gids.every(({ interfaceIndex }) => interfaceIndex > 0));
});

test('write, read and atomics between two queue pairs', () => {
  using bench = new Bench();
  const [a] = bench.pair();
  const from = bench.memory(8192, LOCAL);
  const to = bench.memory(8192, REMOTE);
  const requests = new SendRequests(memory, 4, 2);
  for (let i = 0; i < 8192; i++) from.bytes[i] = i * 7;

  requests.setId(3, 2 ** 53 - 1);
  requests.setLocal(3, from.va + 100, 5000, from.mr.lkey);
  requests.addLocal(3, from.va, 100, from.mr.lkey);
  requests.write(3, to.va + 8, to.mr.rkey, SIGNALED);
  assert.throws(() => requests.addLocal(3, 0, 1, 0), { code: 'EINVAL' });
  assert.equal(verbs.postSend(a, requests, 3, 1), 1);
  assert.deepEqual(bench.done(1), [String(2 ** 53 - 1)]);
  assert.equal(bench.completions.opcode(0), work.IBV_WC_RDMA_WRITE);
  assert.equal(bench.completions.qpNumber(0), a.number);
  assert.deepEqual(to.bytes.subarray(8, 5008), from.bytes.subarray(100, 5100));
  assert.deepEqual(to.bytes.subarray(5008, 5108), from.bytes.subarray(0, 100));
  assert.equal(to.bytes[7] + to.bytes[5108], 0);

  from.bytes.fill(0);
  requests.setLocal(0, from.va, 5000, from.mr.lkey);
  requests.setId(0, 1);
  requests.read(0, to.va + 8, to.mr.rkey, SIGNALED);
  verbs.postSend(a, requests, 0, 1);
  assert.deepEqual(bench.done(1), ['1']);
  assert.equal(bench.completions.opcode(0), work.IBV_WC_RDMA_READ);
  assert.deepEqual(from.bytes.subarray(0, 5000), to.bytes.subarray(8, 5008));

  const counter = new BigInt64Array(to.bytes.buffer, 6144, 1);
  const before = new BigInt64Array(from.bytes.buffer, 6144, 4);
  counter[0] = 5n;
  const steps: ((slot: number) => void)[] = [
    (slot) => requests.fetchAndAdd(slot, to.va + 6144, to.mr.rkey, -7, SIGNALED),
    (slot) => requests.compareAndSwap(slot, to.va + 6144, to.mr.rkey, -2, 0x7edcba9876543210n, SIGNALED),
    (slot) => requests.compareAndSwap(slot, to.va + 6144, to.mr.rkey, 4, 6, SIGNALED),
    (slot) => requests.fetchAndAdd(slot, to.va + 6144, to.mr.rkey, 2 ** 40, SIGNALED),
  ];
  // A ring: slots 2, 3, 0, 1.
  for (const [i, step] of steps.entries()) {
    const slot = (2 + i) % 4;
    requests.setId(slot, i);
    requests.setLocal(slot, from.va + 6144 + 8 * i, 8, from.mr.lkey);
    step(slot);
  }
  assert.equal(verbs.postSend(a, requests, 2, 4), 4);
  assert.deepEqual(bench.done(4), ['0', '1', '2', '3']);
  assert.deepEqual([...before], [5n, -2n, 0x7edcba9876543210n, 0x7edcba9876543210n]);
  assert.equal(counter[0], 0x7edcba9876543210n + 2n ** 40n);
});

test('send and receive, with immediate data, inline, and a completion event', async () => {
  using bench = new Bench();
  const [a, b] = bench.pair();
  const from = bench.memory(4096, LOCAL);
  const to = bench.memory(4096, REMOTE);
  const receives = new ReceiveRequests(memory, 8);
  for (let i = 0; i < 8; i++) {
    receives.setId(i, 100 + i);
    receives.setLocal(i, to.va + i * 512, 512, to.mr.lkey);
  }
  assert.equal(verbs.postReceive(b, receives, 5, 8), 8);
  assert.equal(verbs.nextCqEvent(bench.channel), undefined);
  verbs.requestNotify(bench.cq, false);

  const requests = new SendRequests(memory, 2);
  from.bytes.set([1, 2, 3, 4]);
  requests.setId(0, 1);
  requests.setLocal(0, from.va, 4, from.mr.lkey);
  requests.sendWithImmediate(0, 0x80010203, SIGNALED | work.IBV_SEND_INLINE);
  requests.setId(1, 2);
  requests.clearLocal(1);
  requests.writeWithImmediate(1, to.va, to.mr.rkey, 7, SIGNALED);
  const event = new Promise<void>((resolve) => {
    const watch = readiness.watch(bench.channel.fd, { readable: true }, () => {
      watch.close();
      resolve();
    });
  });
  assert.equal(verbs.postSend(a, requests, 0, 2), 2);
  from.bytes[0] = 9;
  await event;
  assert.equal(verbs.nextCqEvent(bench.channel), bench.cq);
  assert.equal(verbs.nextCqEvent(bench.channel), undefined);

  const lines: string[] = [];
  pause(() => {
    const { completions } = bench;
    const count = verbs.pollCq(bench.cq, completions);
    for (let i = 0; i < count; i++) {
      assert.equal(completions.status(i), work.IBV_WC_SUCCESS);
      const isReceive = (completions.opcode(i) & work.IBV_WC_RECV) !== 0;
      lines.push(
        [completions.id(i), completions.opcode(i)]
          .concat(
            isReceive
              ? [completions.byteLength(i), completions.immediate(i), completions.flags(i) & ~work.IBV_WC_GRH]
              : [],
          )
          .join(' '),
      );
    }
    return lines.length >= 4;
  });
  assert.deepEqual(lines.sort(), [
    `1 ${work.IBV_WC_SEND}`,
    `105 ${work.IBV_WC_RECV} 4 2147549699 ${work.IBV_WC_WITH_IMM}`,
    `106 ${work.IBV_WC_RECV_RDMA_WITH_IMM} 0 7 ${work.IBV_WC_WITH_IMM}`,
    `2 ${work.IBV_WC_RDMA_WRITE}`,
  ]);
  // Inline data are taken when it is posted.
  assert.deepEqual([...to.bytes.subarray(5 * 512, 5 * 512 + 5)], [1, 2, 3, 4, 0]);
});

test('datagrams, and requests that lead nowhere', () => {
  using bench = new Bench();
  const a = bench.datagrams();
  const b = bench.datagrams();
  const from = bench.memory(4096, LOCAL);
  const to = bench.memory(4096, LOCAL);
  const receives = new ReceiveRequests(memory, 1);
  receives.setId(0, 7);
  receives.setLocal(0, to.va, 4096, to.mr.lkey);
  verbs.postReceive(b, receives, 0, 1);
  const requests = new SendRequests(memory, 1);
  requests.setId(0, 8);
  requests.setLocal(0, from.va, 300, from.mr.lkey);
  from.bytes.fill(0xab, 0, 300);
  requests.send(0, SIGNALED);
  // Without a destination it would follow a pointer that is none.
  assert.throws(() => verbs.postSend(a, requests, 0, 1), { code: 'EINVAL' });
  const gone = verbs.createAh(bench.pd, bench.path);
  requests.setDestination(0, gone, b.number, QKEY);
  verbs.destroyAh(gone);
  assert.throws(() => verbs.postSend(a, requests, 0, 1), { code: 'EINVAL' });
  const ah = bench.own(verbs.createAh(bench.pd, bench.path), verbs.destroyAh);
  requests.setDestination(0, ah, b.number, QKEY);
  assert.equal(verbs.postSend(a, requests, 0, 1), 1);
  assert.deepEqual(bench.done(2).sort(), ['7', '8']);
  assert.deepEqual([...to.bytes.subarray(40, 341)], [...new Uint8Array(300).fill(0xab), 0]);
});

test('the other side refuses what is not registered any more, not allowed, or past the end', () => {
  const attempt = (
    act: (bench: Bench, to: ReturnType<Bench['memory']>, write: (at: number, length: number) => void) => void,
  ) => {
    using bench = new Bench();
    const [a, b] = bench.pair();
    const from = bench.memory(8192, LOCAL);
    const to = bench.memory(4096, REMOTE);
    const requests = new SendRequests(memory, 2);
    const { rkey } = to.mr;
    act(bench, to, (at, length) => {
      for (const slot of [0, 1]) {
        requests.setId(slot, slot);
        requests.setLocal(slot, from.va, length, from.mr.lkey);
        requests.write(slot, at, rkey, SIGNALED);
      }
      assert.equal(verbs.postSend(a, requests, 0, 2), 2);
    });
    assert.deepEqual(bench.done(2), ['0 REM_ACCESS_ERR', '1 WR_FLUSH_ERR']);
    assert.equal(verbs.queryQp(a).state, queues.IBV_QPS_ERR);
    const event = nextEvent(bench.context);
    assert.deepEqual([event.name, event.qp, event.port], ['QP_ACCESS_ERR', b, undefined]);
    assert.ok(to.bytes.every((byte) => byte === 0));
  };
  attempt((_, to, write) => {
    verbs.deregisterMemory(to.mr);
    write(to.va, 64);
  });
  attempt((_, to, write) => write(to.va + 64, 4096));
});

test('a local key that is gone is told by the completion', () => {
  using bench = new Bench();
  const [a] = bench.pair();
  const from = bench.memory(4096, LOCAL);
  const to = bench.memory(4096, REMOTE);
  const requests = new SendRequests(memory, 1);
  requests.setLocal(0, from.va, 64, from.mr.lkey);
  requests.write(0, to.va, to.mr.rkey, 0);
  verbs.deregisterMemory(from.mr);
  assert.throws(() => verbs.deregisterMemory(from.mr), { code: 'EINVAL' });
  assert.equal(verbs.postSend(a, requests, 0, 1), 1);
  // rxe flushes its queue faster than it tells which request began it.
  assert.match(bench.done(1)[0], /^0 (LOC_PROT_ERR|WR_FLUSH_ERR)$/);
});

function nextEvent(context: VerbsContext): VerbsAsyncEvent {
  let event: VerbsAsyncEvent | undefined;
  pause(() => (event = verbs.nextAsyncEvent(context)) !== undefined);
  assert.ok(event !== undefined);
  return event;
}

test('regions at other addresses, of no memory, and on demand', (t) => {
  using bench = new Bench();
  const [a] = bench.pair();
  const from = bench.memory(8192, LOCAL);
  const { pd } = bench;
  const va = bench.own(memory.map({ length: 8192 }), (each) => memory.unmap(each, 8192));
  const bytes = new Uint8Array(bench.own(memory.view(va, 8192), memory.detach));
  const elsewhere = bench.own(
    verbs.registerMemory(pd, { va, length: 8192, access: REMOTE, iova: 0x10_0000_0000 + (va % 4096) }),
    verbs.deregisterMemory,
  );
  const requests = new SendRequests(memory, 1);
  from.bytes.fill(3);
  requests.setLocal(0, from.va, 64, from.mr.lkey);
  requests.write(0, 0x10_0000_1000, elsewhere.rkey, SIGNALED);
  verbs.postSend(a, requests, 0, 1);
  assert.deepEqual(bench.done(1), ['0']);
  assert.deepEqual([bytes[4095], bytes[4096], bytes[4159], bytes[4160]], [0, 3, 3, 0]);

  assert.throws(() => verbs.registerMemory(pd, { va: 4096 as Va, length: 4096, access: LOCAL }), { code: 'EFAULT' });
  const wrong = { va, length: 8192, access: memoryAbi.IBV_ACCESS_REMOTE_WRITE };
  assert.throws(() => verbs.registerMemory(pd, wrong), { code: 'EINVAL' });
  assert.throws(() => verbs.registerMemory(pd, { va, length: 0, access: LOCAL }), { code: 'EINVAL' });

  const { odp } = verbs.queryDevice(bench.context);
  t.diagnostic(`on-demand paging: ${JSON.stringify(odp)}`);
  const demand = { va, length: 8192, access: LOCAL | memoryAbi.IBV_ACCESS_ON_DEMAND };
  if ((odp.general & devices.IBV_ODP_SUPPORT) === 0)
    assert.throws(
      () => verbs.registerMemory(pd, demand),
      (error) => isDmaError(error),
    );
  else {
    const mr = bench.own(verbs.registerMemory(pd, demand), verbs.deregisterMemory);
    try {
      verbs.adviseMemory(mr, va, 8192, memoryAbi.IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE, true);
    } catch (error) {
      // libibverbs hands it to the provider, and that of rxe has it only in newer versions.
      assert.ok(isDmaError(error, 'ENOTSUP'));
      t.diagnostic(error.message);
    }
    requests.setLocal(0, va, 64, mr.lkey);
    verbs.postSend(a, requests, 0, 1);
    assert.deepEqual(bench.done(1), ['0']);
  }
});

test('a dma-buf is registered, or said not to be possible', (t) => {
  using bench = new Bench();
  const { files, ioctl } = platform;
  const fd = bench.own(memory.memfd({ name: 'dmabuf', length: 8192 }), files.close);
  const va = bench.own(memory.map({ fd, length: 8192 }), (each) => memory.unmap(each, 8192));
  const bytes = new Uint8Array(bench.own(memory.view(va, 8192), memory.detach));
  const maker = bench.own(files.open('/dev/udmabuf', 'read-write'), files.close);
  // UDMABUF_CREATE with struct udmabuf_create: memfd, flags, offset, size (include/uapi/linux/udmabuf.h).
  const create = new Uint32Array([fd, 1, 0, 0, 8192, 0]);
  const dmabuf = bench.own(ioctl.call(maker, 0x40187542, new Uint8Array(create.buffer), 'UDMABUF_CREATE'), files.close);
  const options = { fd: dmabuf, offset: 4096, length: 4096, iova: 2 ** 40, access: REMOTE };
  let mr: VerbsMr;
  try {
    mr = verbs.registerDmabuf(bench.pd, options);
  } catch (error) {
    assert.ok(isDmaError(error, 'ENOTSUP') && error.operation === 'ibv_reg_dmabuf_mr');
    t.diagnostic(error.message);
    return;
  }
  bench.own(mr, verbs.deregisterMemory);
  const [a] = bench.pair();
  const from = bench.memory(4096, LOCAL);
  from.bytes.fill(5);
  const requests = new SendRequests(memory, 1);
  requests.setLocal(0, from.va, 100, from.mr.lkey);
  requests.write(0, 2 ** 40 + 8, mr.rkey, SIGNALED);
  verbs.postSend(a, requests, 0, 1);
  assert.deepEqual(bench.done(1), ['0']);
  assert.deepEqual([bytes[4103], bytes[4104], bytes[4203], bytes[4204]], [0, 5, 5, 0]);
});

test('memory windows of both types, and the region below them', () => {
  using bench = new Bench();
  const [a, b] = bench.pair();
  const from = bench.memory(4096, LOCAL);
  const to = bench.memory(4096, REMOTE);
  const requests = new SendRequests(memory, 1);
  const writeBy = (rkey: number, at: number): string[] => {
    requests.setId(0, 5);
    requests.setLocal(0, from.va, 16, from.mr.lkey);
    requests.write(0, at, rkey, SIGNALED);
    verbs.postSend(a, requests, 0, 1);
    return bench.done(1);
  };
  from.bytes.fill(6);

  const first = bench.own(verbs.allocateMw(bench.pd, 1), verbs.deallocateMw);
  const access = memoryAbi.IBV_ACCESS_REMOTE_WRITE;
  const binding = { mr: to.mr, va: to.va + 64, length: 64, access, id: 1, flags: SIGNALED };
  const rkey = verbs.bindMw(b, first, binding);
  assert.equal(rkey, first.rkey);
  assert.deepEqual(bench.done(1), ['1']);
  assert.deepEqual(writeBy(rkey, to.va + 64), ['5']);
  assert.equal(to.bytes[64], 6);
  assert.throws(() => verbs.deregisterMemory(to.mr), { code: 'EBUSY', operation: 'ibv_dereg_mr' });
  verbs.bindMw(b, first, { ...binding, length: 0, id: 2 });
  assert.deepEqual(bench.done(1), ['2']);

  const second = bench.own(verbs.allocateMw(bench.pd, 2), verbs.deallocateMw);
  const key = (second.rkey & ~0xff) | ((second.rkey + 1) & 0xff);
  requests.setId(0, 3);
  requests.clearLocal(0);
  requests.bindWindow(0, second, key >>> 0, to.mr, to.va + 128, 64, access, SIGNALED);
  assert.throws(() => verbs.bindMw(b, second, binding), { code: 'EINVAL' });
  verbs.postSend(b, requests, 0, 1);
  assert.deepEqual(bench.done(1), ['3']);
  assert.deepEqual(writeBy(key >>> 0, to.va + 128), ['5']);
  requests.setId(0, 4);
  requests.clearLocal(0);
  requests.invalidate(0, key >>> 0, SIGNALED);
  verbs.postSend(b, requests, 0, 1);
  assert.deepEqual(bench.done(1), ['4']);
  assert.deepEqual(writeBy(key >>> 0, to.va + 128), ['5 REM_ACCESS_ERR']);
});

test('a queue takes what it has room for', () => {
  using bench = new Bench();
  const [a] = bench.pair();
  // A queue pair that is not connected takes requests and leaves them.
  const idle = bench.qp('rc');
  const receives = new ReceiveRequests(memory, idle.receives + 8);
  for (let i = 0; i < receives.slots; i++) receives.clearLocal(i);
  assert.equal(verbs.postReceive(idle, receives, 4, receives.slots), idle.receives);
  assert.throws(() => verbs.postReceive(idle, receives, 0, 1), { code: 'ENOMEM', operation: 'ibv_post_recv' });
  const requests = new SendRequests(memory, 1);
  requests.send(0, SIGNALED);
  assert.throws(() => verbs.postSend(idle, requests, 0, 1), { code: 'EINVAL' });
  for (const [first, count] of [
    [1, 1],
    [0, 2],
    [-1, 1],
    [0.5, 1],
    [0, NaN],
  ])
    assert.throws(() => verbs.postSend(a, requests, first, count), { code: 'EINVAL', operation: 'ibv_post_send' });
  assert.equal(verbs.postSend(a, requests, 0, 0), 0);
  assert.ok(a.sends >= 16 && a.inline >= 64 && a.sendSges >= 4);
  assert.deepEqual(
    [verbs.queryQp(a).state, verbs.queryQp(a).mtu, verbs.queryQp(idle).state],
    [queues.IBV_QPS_RTS, 1024, queues.IBV_QPS_INIT],
  );
  verbs.resizeCq(bench.cq, 200);
  assert.ok(bench.cq.entries >= 200);
});

test('what something else needs is not given back', () => {
  using bench = new Bench();
  bench.qp('rc');
  for (const [attempt, operation] of [
    [() => verbs.close(bench.context), 'ibv_close_device'],
    [() => verbs.deallocatePd(bench.pd), 'ibv_dealloc_pd'],
    [() => verbs.destroyCq(bench.cq), 'ibv_destroy_cq'],
    [() => verbs.destroyChannel(bench.channel), 'ibv_destroy_comp_channel'],
  ] as const)
    assert.throws(attempt, { code: 'EBUSY', operation });
  const other = verbs.open('rxe0');
  const cq = verbs.createCq(other, 4);
  const options = { type: 'rc' as const, sendCq: bench.cq, receiveCq: cq };
  assert.throws(() => verbs.createQp(bench.pd, options), { code: 'EINVAL' });
  verbs.destroyCq(cq);
  assert.throws(() => verbs.pollCq(cq, bench.completions), { code: 'EINVAL' });
  verbs.close(other);
  assert.throws(() => verbs.queryDevice(other), { code: 'EINVAL' });
  assert.throws(() => verbs.open('rxe7'), { code: 'ENODEV' });
});

test('a port that goes down and comes up again, and a device that is unplugged', () => {
  using bench = new Bench();
  sh('ip', 'link', 'set', NETDEV, 'down');
  const seen: number[] = [];
  const until = (type: number): VerbsAsyncEvent => {
    for (;;) {
      const event = nextEvent(bench.context);
      seen.push(event.type);
      if (event.type === type) return event;
    }
  };
  assert.deepEqual(
    { ...until(IBV_EVENT_PORT_ERR) },
    { type: IBV_EVENT_PORT_ERR, name: 'PORT_ERR', port: 1, qp: undefined, cq: undefined },
  );
  assert.notEqual(verbs.queryPort(bench.context, 1).state, 'active');
  sh('ip', 'link', 'set', NETDEV, 'up');
  assert.equal(until(IBV_EVENT_PORT_ACTIVE).port, 1);
  const { mr } = bench.memory(4096, LOCAL);
  bench.qp('rc');
  sh('rdma', 'link', 'delete', 'rxe0');
  assert.equal(until(IBV_EVENT_DEVICE_FATAL).port, undefined);
  assert.throws(() => verbs.queryPort(bench.context, 1), { code: 'EIO' });
  assert.equal(mr.pd, bench.pd);
  assert.deepEqual(
    verbs.devices().filter(({ name }) => name === 'rxe0'),
    [],
  );
});
