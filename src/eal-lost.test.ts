/** What a program holds when its device goes: registers, drivers, queue pairs, calls that are under way. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Device } from './bus/model.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { eduDriver } from './drivers/edu-driver.js';
import { verbsDriver } from './drivers/verbs-driver.js';
import { Eal } from './eal.js';
import { DmaError } from './errors.js';
import { openPlatform } from './platform/open.js';
import { Fabric } from '../test/fakes/rdma/fabric.js';
import { MiB } from './units.js';
import { spawnDevice } from './vfio-user/device-process.js';

const skip = openPlatform().limitation ?? false;

/** What each of these calls ends with; `ENODEV, device.lost` where it is as it should be. */
async function outcomes(device: Device, calls: Record<string, () => unknown>): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const [name, call] of Object.entries(calls)) found[name] = await outcome(device, call);
  return found;
}

async function outcome(device: Device, call: () => unknown): Promise<string> {
  try {
    await call();
    return 'done';
  } catch (error) {
    if (!(error instanceof DmaError)) return String(error);
    const isCause = device.lost !== undefined && error.cause === device.lost;
    return `${error.code}, ${isCause ? 'device.lost' : error.message}`;
  }
}

const expected = (calls: Record<string, unknown>, what: string): Record<string, string> =>
  Object.fromEntries(Object.keys(calls).map((name) => [name, what]));

describe('after a loss', { skip }, () => {
  it('what was held of a device in another process is ENODEV with device.lost, and cleaning up is quiet', async () => {
    await using eal = await Eal.start();
    const served = await spawnDevice('copy');
    const device = await eal.probe(`vfio-user:${served.socketPath}`);
    const memory = eal.external.allocate(64 * MiB);
    const mapping = device.dmaMap(memory);
    const engine = device.use(copyEngineDriver);
    const { access } = device;
    const registers = access.registers(0);
    const more = eal.external.allocate(16 * MiB);
    const underWay = {
      copy: engine.copy(mapping.iova, mapping.iova + 32 * MiB, 32 * MiB),
      map: device.dmaMapAsync(more, { chunkBytes: 4096 }),
    };
    const ends = Promise.all(Object.values(underWay).map((each) => outcome(device, () => each)));
    process.kill(served.pid, 'SIGKILL');
    assert.deepEqual(await ends, ['ENODEV, device.lost', 'ENODEV, device.lost']);
    const calls = {
      read8: () => registers.read8(0),
      read32: () => registers.read32(0),
      read64: () => registers.read64(0),
      write32: () => registers.write32(0, 1),
      flush: () => registers.flush(0),
      registers: () => access.registers(0),
      readRegion: () => access.readRegion(0, 0, 4),
      writeRegion: () => access.writeRegion(0, 0, new Uint8Array(4)),
      reset: () => access.reset(),
      interrupts: () => access.enableInterrupts('msi', [() => undefined]),
      submit: () => engine.submit(0, 4096, 64),
      poll: () => engine.poll(),
      copy: () => engine.copy(0, 4096, 64),
      dmaMap: () => device.dmaMap(memory),
      iovaOf: () => device.iovaOf(memory),
      'mapping.iova': () => mapping.iova,
      'mapping.iovaOf': () => mapping.iovaOf(memory.va),
    };
    assert.deepEqual(await outcomes(device, calls), expected(calls, 'ENODEV, device.lost'));
    const quiet = {
      unmap: () => mapping.unmap(),
      dmaUnmap: () => device.dmaUnmap(memory),
      close: () => engine.close(),
      remove: () => eal.remove(device),
      explain: () => device.explain(0x1000),
      explainFaults: () => device.explainFaults(),
      served: () => served.close(),
      unregister: () => memory.unregister(),
    };
    assert.deepEqual(await outcomes(device, quiet), expected(quiet, 'done'));
  });

  it('a driver of edu says so too', async () => {
    await using eal = await Eal.start();
    await using served = await spawnDevice('edu');
    const device = await eal.probe(`vfio-user:${served.socketPath}`);
    const edu = device.use(eduDriver);
    process.kill(served.pid, 'SIGKILL');
    const calls = {
      factorial: () => edu.factorial(5),
      liveness: () => edu.liveness(1),
      copyIn: () => edu.copyIn(0, 0, 4),
    };
    assert.deepEqual(await outcomes(device, calls), expected(calls, 'ENODEV, device.lost'));
    await eal.remove(device);
    assert.deepEqual(await outcomes(device, calls), expected(calls, 'ENODEV, device.lost'));
    edu.close();
  });

  it('queue pairs and completion queues of an RDMA device say so too', async () => {
    const platform = new Fabric().host(openPlatform(), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
    const eal = await Eal.start({ platform });
    const device = await eal.probe('rdma:rxe0');
    const rdma = device.use(verbsDriver);
    const memory = eal.external.allocate(4096);
    const mapping = device.dmaMap(memory, { remote: 'read-write' });
    const pair = rdma.createQueuePair();
    const unconnected = rdma.createQueuePair();
    const queue = rdma.createCompletionQueue();
    const window = rdma.createWindow();
    pair.connect(pair.address);
    const requests = pair.sendRequests(1);
    const receives = pair.receiveRequests(1);
    const local = { va: memory.va, length: 64 };
    const remote = { address: memory.va, rkey: mapping.rkey ?? 0 };
    const underWay = outcome(device, () => pair.receive(local));
    platform.unplug('rxe0');
    assert.equal(await underWay, 'ENODEV, device.lost');
    const calls = {
      write: () => pair.write({ local, remote }),
      read: () => pair.read({ local, remote }),
      send: () => pair.send({ local }),
      receive: () => pair.receive(local),
      bind: () => pair.bind(window, local, 'read'),
      post: () => pair.post(requests),
      postReceives: () => pair.postReceives(receives),
      connect: () => unconnected.connect(pair.address),
      status: () => pair.status(),
      halt: () => pair.halt(),
      poll: () => queue.poll(),
      next: () => queue.next(),
      createQueuePair: () => rdma.createQueuePair(),
      createCompletionQueue: () => rdma.createCompletionQueue(),
      createWindow: () => rdma.createWindow(),
      createAddress: () => rdma.createAddress(pair.address),
      expose: () => rdma.expose(memory, 'read'),
      registerDmabuf: () => rdma.registerDmabuf({ fd: 0, length: 4096 }),
      ports: () => rdma.ports(),
      gids: () => rdma.gids(),
    };
    for (let round = 0; round < 2; round++) {
      assert.deepEqual(await outcomes(device, calls), expected(calls, 'ENODEV, device.lost'));
      await eal.remove(device);
    }
    const quiet = {
      pair: () => pair.close(),
      unconnected: () => unconnected.close(),
      queue: () => queue.close(),
      window: () => window.close(),
      unmap: () => mapping.unmap(),
      explain: () => device.explain(0x1000),
    };
    assert.deepEqual(await outcomes(device, quiet), expected(quiet, 'done'));
    await eal.stop();
    assert.deepEqual(platform.verbsLeaks(), []);
  });
});
