import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import type { FailingPlatform } from '../../test/fakes/platform/platforms.js';
import { VfioUserClient } from './client.js';
import type { DeviceModel, ModelHost } from './devices/model.js';
import { serve } from './server.js';
import { inMemoryPlatform } from '../../test/fakes/vfio-user/sockets.js';

/** A device with memory of its own that fills the client's. */
function model(host: ModelHost): DeviceModel {
  return {
    name: 'fill',
    identity: { vendor: 1, device: 2, subsystemVendor: 3, subsystem: 4, revision: 5, classCode: 6 },
    regions: [{ index: 0, size: 8192, memory: [{ offset: 4096, length: 4096 }] }],
    interrupts: { intx: 1, msi: 2, msix: 0 },
    read: (_region, offset, into) => into.fill(offset),
    write: (_region, offset, from) => {
      try {
        void host.dma.write(offset * 4096, from)?.catch(() => undefined);
      } catch {
        // As hardware: what is not there is not written.
      }
      host.interrupt(0);
    },
    reset: () => undefined,
    quiesce: () => undefined,
    resume: () => undefined,
  };
}

/** All that a client does, with the server in the same process. */
async function story(platform: FailingPlatform, patienceMs: number): Promise<void> {
  const server = serve(platform, { socketPath: '/faults', model, handshakeTimeoutMs: 100 });
  const undo: (() => void)[] = [];
  try {
    const fd = platform.memory.memfd({ name: 'faults', length: 8192 });
    undo.push(() => platform.files.close(fd));
    const file = platform.files.open('/proc/self/exe', 'read');
    undo.push(() => platform.files.close(file));
    const event = platform.events.create();
    undo.push(() => platform.files.close(event));
    const client = await VfioUserClient.connect(platform, '/faults', {
      handshakeTimeoutMs: patienceMs,
      timeoutMs: patienceMs,
      dmaTarget: (_iova, length) => new Uint8Array(length),
    });
    undo.push(() => client.close());
    client.dmaMap({ iova: 4096, length: 4096, access: 'read-write', backing: { fd, offset: 4096 } });
    client.dmaMap({ iova: 8192, length: 4096, access: 'read-write' });
    await client.dmaMapAsync({ iova: 16384, length: 4096, access: 'read', backing: { fd: file, offset: 0 } });
    client.setInterrupts({ index: 1, action: 'trigger', eventfds: [event, event] });
    const registers = client.registers(0);
    registers.write32(4096, 7);
    registers.write32(4, 8);
    client.regionWrite(0, 1, new Uint8Array(4));
    client.regionWrite(0, 2, new Uint8Array(4), { posted: true });
    await client.regionReadAsync(0, 0, new Uint8Array(8192));
    client.reset();
    client.dmaUnmap(4096, 4096);
    await client.dmaUnmapAsync(8192, 4096);
  } finally {
    for (const step of undo.reverse()) step();
    await server.close();
  }
}

test(
  'whichever system call fails, it is told, and nothing is left',
  { skip: openPlatform().limitation ?? false },
  async () => {
    let told = 0;
    let survived = 0;
    let patienceMs = 30;
    for (let n = 1; ; n++) {
      assert.ok(n < 2000);
      const tracking = trackingPlatform(inMemoryPlatform(openPlatform()));
      const platform = failingPlatform(tracking);
      platform.failCall(n, 'ENOMEM');
      try {
        await story(platform, patienceMs);
        if (platform.failed() !== undefined) survived++;
      } catch (error) {
        if (platform.failed() === undefined && isDmaError(error, 'ETIMEDOUT')) {
          // Nothing failed: the machine is too busy for this patience.
          patienceMs *= 2;
          n--;
          continue;
        }
        assert.ok(isDmaError(error), `call ${n}, ${String(platform.failed())}: ${String(error)}`);
        told++;
      }
      await new Promise((resolve) => setImmediate(resolve));
      assert.deepEqual(tracking.leaks(), [], `call ${n}, ${String(platform.failed())}`);
      if (platform.failed() === undefined) break;
    }
    assert.ok(told >= 15, `${told} told, ${survived} survived`);
  },
);
