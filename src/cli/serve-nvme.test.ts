import assert from 'node:assert/strict';
import { statSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Room } from '../../test/shared/command.js';
import { Eal } from '../eal.js';
import { nvmeDriver } from '../entry/nvme.js';
import { isDmaError } from '../errors.js';

test('anydma serve nvme: disks in files, and a fault on purpose', async () => {
  using room = new Room();
  const first = room.file('a.img');
  const server = room.start([
    ...['serve', 'nvme', '--socket', 'x.sock', '--json', '--file', first, '--size', '1MiB', '--serial', 'MINE'],
    ...['--namespace', `${room.file('b.img')},size=2MiB,blocksize=4096`, '--queues', '2'],
    ...['--fault', 'do=fail,opcode=2,nth=2,status=641', '--memory-buffer', '64KiB', '--host-memory', '4KiB'],
  ]);
  await server.saying('"ready":true');
  {
    await using eal = await Eal.start({ memory: { onNotice: () => undefined } });
    const device = await eal.probe(`vfio-user:${room.file('x.sock')}`);
    const ssd = device.use(nvmeDriver);
    assert.equal(ssd.identity.serial, 'MINE');
    assert.deepEqual(
      ssd.namespaces.map(({ id, blockSize, size }) => [id, blockSize, size]),
      [
        [1, 512, 2 ** 20],
        [2, 4096, 2 ** 21],
      ],
    );
    const block = eal.malloc(4096);
    const [disk] = ssd.namespaces;
    await disk.read({ lba: 0, blocks: 1, into: block });
    await assert.rejects(disk.read({ lba: 0, blocks: 1, into: block }), (error) => isDmaError(error));
    block.bytes().fill(3);
    await disk.write({ lba: 0, blocks: 8, from: block });
    block.free();
  }
  server.child.kill('SIGTERM');
  const { stderr } = await server.ended;
  assert.match(stderr, /a client has connected/);
  assert.equal(statSync(first).size, 2 ** 20);
});

test('anydma serve nvme: an image that can not be served is an error before the socket is there', async () => {
  using room = new Room();
  const file = room.file('disk.img');
  writeFileSync(file, new Uint8Array(4096));
  for (const [args, says] of [
    [['--file', file, '--size', '8k'], /was asked for.*truncate/s],
    [['--file', room.file('none')], /say a size/],
    [['--file', file, '--block-size', '1024'], /not 512 or 4096/],
  ] as const) {
    const { status, stdout, stderr } = await room.call(['serve', 'nvme', '--socket', 'x.sock', ...args]);
    assert.equal(status, 1, stderr);
    assert.equal(stdout, '');
    assert.match(stderr, says);
  }
});
