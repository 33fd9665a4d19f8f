/** Errors that a program meets first have a next step. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import { openPlatform } from './platform/open.js';

it('common mistakes have a hint that says what to do', { skip: openPlatform().limitation ?? false }, async () => {
  await using eal = await Eal.start({ memory: { noHuge: true } });
  const device = await eal.probe('vdev:copy0');
  using memory = eal.external.allocate(8192);
  eal.heap.create('h');
  using _zone = eal.zones.reserve('z', 64);
  const mistakes: Record<string, () => unknown> = {
    'a name of no bus': () => eal.probe('bogus'),
    'a device there is not': () => eal.probe('vdev:nosuch'),
    'a device that is probed': () => eal.probe('vdev:copy0'),
    'a misaligned range': () => device.dmaMap({ va: memory.va + 1, length: 4096 }),
    'a range past the end': () => device.dmaMap({ va: memory.va, length: 65536 }),
    'memory that is not registered': () => device.dmaMap({ va: 4096, length: 4096 }),
    'a misaligned IOVA': () => device.dmaMap(memory, { iova: 4097 }),
    'rights of peers on a device without keys': () => device.dmaMap(memory, { remote: 'read' }),
    'more memory than there is': () => eal.malloc(2 ** 50),
    'an empty heap': () => eal.malloc(64, { heap: 'h' }),
    'a heap of that name': () => eal.heap.create('h'),
    "the library's heap": () => eal.heap.destroy('socket_0'),
    'a zone of that name': () => eal.zones.reserve('z', 64),
    'a zone there is not': () => eal.zones.free('none'),
    'a misaligned view': () => eal.external.register(new Uint8Array(5)),
    'a region there is not': () => device.access.registers(3),
  };
  for (const [what, call] of Object.entries(mistakes))
    await assert.rejects(
      async () => call(),
      (error) => isDmaError(error) && error.hint !== undefined,
      what,
    );
});
