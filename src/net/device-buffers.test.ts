/** The addresses that devices use for the buffers of packets. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { throwsDma } from '../../test/shared/errors.js';
import { Eal } from '../eal.js';
import { Packets } from './packets.js';

it('a device that was probed has an address for each element, and for attached memory that is mapped', async () => {
  await using eal = await Eal.start();
  const device = await eal.probe('vdev:null0');
  const pool = eal.pools.create({ elements: 16, elementSize: 256 });
  const packets = new Packets(pool);
  const buffers = packets.buffersFor(device);
  for (const [element, va] of pool.vas.entries()) assert.equal(buffers.of(element), device.iovaOf(va as never));
  using memory = eal.external.allocate(4096);
  const packet = packets.takeOne();
  packets.attach(packet, { bytes: memory.bytes(), va: memory.va, released: () => undefined });
  assert.equal(buffers.of(packets.buffer[packet]), -1, 'it is not mapped yet');
  packets.releaseOne(packet);
  const mapping = device.dmaMap(memory);
  packets.attach(packets.takeOne(), { bytes: memory.bytes(), va: memory.va, released: () => undefined });
  assert.equal(packets.buffersFor(device).of(packets.buffer[packet]), mapping.iova);
  packets.releaseOne(packet);
  mapping.unmap();
  for (const wrong of [undefined, null, 7]) throwsDma('EINVAL', () => packets.buffersFor(wrong as never));
  pool.free();
});
