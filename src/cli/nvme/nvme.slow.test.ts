import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { documentOf, Room } from '../../../test/shared/command.js';

const MAIN = fileURLToPath(new URL('../main.js', import.meta.url));

/** A served disk in `room`: 64 MiB of blocks of 512 bytes, and 8 MiB of blocks of 4096. */
async function disk(room: Room, ...more: string[]): Promise<string> {
  const small = `${room.file('small.img')},size=8MiB,blocksize=4096`;
  const args = ['--file', room.file('disk.img'), '--size', '64MiB', '--namespace', small, ...more];
  const server = room.start(['serve', 'nvme', ...args, '--socket', 'x.sock', '--json']);
  await server.saying('"ready":true');
  return `vfio-user:${room.file('x.sock')}`;
}

describe('anydma nvme', { concurrency: 2 }, () => {
  test('a file goes to the disk and comes back, and a difference is found', async () => {
    using room = new Room();
    const device = await disk(room);
    const on = ['--device', device, '--nsid', '1', '--json'];
    const bytes = randomBytes(3_000_000);
    writeFileSync(room.file('in'), bytes);
    const refused = await room.call(['nvme', 'write', ...on, '--lba', '7', '--file', room.file('in')]);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /3000000 bytes, which is not a multiple of the block size of 512\nhint: --pad/);
    const written = documentOf(
      await room.call(['nvme', 'write', ...on, '--lba', '7', '--file', room.file('in'), '--pad']),
    );
    assert.equal(written['blocks'], Math.ceil(bytes.length / 512));
    const image = readFileSync(room.file('disk.img'));
    assert.ok(image.subarray(7 * 512, 7 * 512 + bytes.length).equals(bytes), 'the image has it');
    const read = documentOf(
      await room.call(['nvme', 'read', ...on, '--lba', '7', '--blocks', '5860', '--file', room.file('out')]),
    );
    assert.ok(readFileSync(room.file('out')).subarray(0, bytes.length).equals(bytes));
    assert.equal(read['bytes'], 5860 * 512);
    const same = documentOf(await room.call(['nvme', 'verify', ...on, '--lba', '7', '--file', room.file('in')]));
    assert.equal(same['sha256'], written['sha256']);
    // The same as far as it goes, and it does not go as far as was asked for.
    const more = ['--lba', '7', '--blocks', '7000', '--file', room.file('in')];
    const short = await room.call(['nvme', 'verify', ...on, ...more]);
    assert.match(short.stderr, /the file has \d+ bytes, and 7000 blocks of 512 bytes were to be compared/);
    documentOf(await room.call(['nvme', 'write-zeroes', ...on, '--lba', '8', '--blocks', '1']));
    const differs = await room.call(['nvme', 'verify', ...on, '--lba', '7', '--file', room.file('in')]);
    assert.equal(differs.status, 1);
    assert.match(differs.stderr, /byte 5\d\d differs: .* of LBA 8/);
    for (const [command, ...args] of [
      ['verify', '--lba', '7', '--blocks', '100'],
      ['flush'],
      ['deallocate', '--lba', '0', '--blocks', '8'],
    ])
      documentOf(await room.call(['nvme', command, ...on, ...args]));
  });

  test('pipes: the data is on standard output, and the report is not', async () => {
    using room = new Room();
    const device = await disk(room);
    const on = ['--device', device, '--nsid', '2'];
    const { status, stdout, stderr } = await room.run(['nvme', 'read', ...on, '--blocks', '2', '--file', '-']);
    assert.equal(status, 0, stderr);
    assert.equal(stdout, '\0'.repeat(8192));
    assert.match(stderr, /2 blocks at LBA 0 of namespace 2: 8 KiB.*SHA-256 [0-9a-f]{64}/);
    const both = await room.call(['nvme', 'read', ...on, '--file', '-', '--json']);
    assert.equal(both.status, 2);
  });

  test('--blocks takes a part of a file; no input, too much of it and too little are errors', async () => {
    using room = new Room();
    const device = await disk(room);
    const on = ['--device', device, '--nsid', '2'];
    const bytes = randomBytes(5 * 4096);
    writeFileSync(room.file('in'), bytes);
    writeFileSync(room.file('empty'), '');
    const part = ['--file', room.file('in'), '--blocks', '2'];
    const written = documentOf(await room.call(['nvme', 'write', ...on, ...part, '--json']));
    assert.deepEqual([written['blocks'], written['bytes']], [2, 8192]);
    const image = readFileSync(room.file('small.img'));
    assert.ok(image.subarray(0, 8192).equals(bytes.subarray(0, 8192)));
    assert.ok(image.subarray(8192).every((byte) => byte === 0));
    assert.equal(documentOf(await room.call(['nvme', 'verify', ...on, ...part, '--json']))['bytes'], 8192);
    for (const [args, says] of [
      [['write', '--file', room.file('empty')], /nvme write: .*empty is empty/],
      [['write', '--file', '/dev/null'], /nvme write: \/dev\/null is empty/],
      [['verify', '--file', room.file('empty'), '--blocks', '1'], /nvme verify: .*empty is empty/],
      [['verify', '--file', room.file('in'), '--blocks', '3'], /byte \d+ differs/],
      [['verify', '--file', room.file('small.img'), '--lba', '1'], /nvme verify: the file has 8 MiB, and from LBA 1/],
      [
        ['write', '--file', '/dev/zero', '--lba', '2047'],
        /the input has more than 4 KiB, and from LBA 2047 on there are 4 KiB/,
      ],
      [['write', '--file', room.path], /read: .*cli-\w+: illegal operation on a directory/],
      [['verify', '--file', room.file('none')], /none: no such file/],
    ] as const) {
      const { status, stderr } = await room.call(['nvme', args[0], ...on, ...args.slice(1)]);
      assert.equal(status, 1, args.join(' '));
      assert.match(stderr, says);
    }
    const zeroes = await room.call(['nvme', 'write', ...on, '--file', '/dev/zero', '--blocks', '5', '--json']);
    assert.equal(documentOf(zeroes)['bytes'], 5 * 4096);
    writeFileSync(room.file('short'), Buffer.alloc(4096));
    const short = await room.call(['nvme', 'verify', ...on, '--file', room.file('short'), '--blocks', '5']);
    assert.match(short.stderr, /the file has 4096 bytes, and 5 blocks of 4096 bytes were to be compared/);
  });

  test('all namespaces are formatted, each with its own format; a format that one has not is refused before', async () => {
    using room = new Room();
    const device = await disk(room);
    const on = ['--device', device, '--json'];
    const sizes = async (): Promise<number[]> =>
      (documentOf(await room.call(['nvme', 'info', ...on]))['namespaces'] as { blockSize: number }[]).map(
        ({ blockSize }) => blockSize,
      );
    const formatted = documentOf(await room.call(['nvme', 'format', ...on, '--all']));
    assert.deepEqual(
      [formatted['nsids'], formatted['formats']],
      [
        [1, 2],
        [0, 1],
      ],
    );
    assert.deepEqual(await sizes(), [512, 4096]);
    const none = await room.call(['nvme', 'format', ...on, '--all', '--lba-format', '7']);
    assert.match(none.stderr, /namespace 1 has no format 7\nhint: it has 0 /);
    documentOf(await room.call(['nvme', 'format', ...on, '--all', '--block-size', '4096']));
    assert.deepEqual(await sizes(), [4096, 4096]);
  });

  test('what it is, its logs, a format, a reset, and commands of the user’s own', async () => {
    using room = new Room();
    const device = await disk(room);
    const on = ['--device', device, '--json'];
    const info = documentOf(await room.call(['nvme', 'info', ...on]));
    assert.deepEqual(
      (info['namespaces'] as { size: number; blockSize: number }[]).map(({ size, blockSize }) => [size, blockSize]),
      [
        [64 * 2 ** 20, 512],
        [8 * 2 ** 20, 4096],
      ],
    );
    for (const page of ['smart', 'error', 'firmware']) documentOf(await room.call(['nvme', 'log', page, ...on]));
    documentOf(await room.call(['nvme', 'reset', ...on]));
    documentOf(await room.call(['nvme', 'format', ...on, '--nsid', '2', '--block-size', '512']));
    const none = await room.call(['nvme', 'format', ...on, '--nsid', '2', '--block-size', '2048']);
    assert.match(none.stderr, /no format with blocks of 2048 bytes.*\nhint: it has 0 \(512 \+ 0 bytes\), 1 \(4096/);
    const identify = ['--opcode', '0x06', '--cdw10', '1', '--data-len', '4096'];
    const { data } = documentOf(await room.call(['nvme', 'admin', ...on, ...identify]));
    assert.match(Buffer.from(String(data), 'base64').toString('latin1'), /anydma NVMe/);
    const read = ['--opcode', '2', '--nsid', '1', '--cdw10', '0', '--cdw12', '7', '--data-len', '4096'];
    const text = await room.call(['nvme', 'io', '--device', device, ...read]);
    assert.match(text.stdout, /done, result 0x00000000\n000000 {2}00 00.*\n\*\n000ff0/);
    documentOf(await room.call(['nvme', 'io', ...on, '--opcode', '0', '--nsid', '0xffffffff']));
    const bad = await room.call(['nvme', 'admin', ...on, '--opcode', '0xc1']);
    assert.equal(bad.status, 1);
    assert.match(bad.stderr, /hint: /);
    const less = ['--opcode', '2', '--nsid', '1', '--cdw12', '7', '--data-len', '512'];
    assert.match(
      (await room.call(['nvme', 'io', ...on, ...less])).stderr,
      /transfers 4096 bytes, and the memory has 512/,
    );
    const endless = ['--opcode', '1', '--nsid', '1', '--input-file', '/dev/zero'];
    assert.match((await room.call(['nvme', 'io', ...on, ...endless])).stderr, /\/dev\/zero has more than 64 MiB/);
    documentOf(await room.call(['nvme', 'io', ...on, ...endless, '--data-len', '512']));
    const unnamed = await room.call(['nvme', 'flush', ...on]);
    assert.match(unnamed.stderr, /has 2 namespaces\nhint: --nsid says which: 1, 2/);
  });

  test('perf: a controller of our own, every byte checked, and nothing is left', async () => {
    using room = new Room();
    const perf = ['nvme', 'perf', '--runtime', '1', '--iodepth', '4', '--numjobs', '2', '--json'];
    const mixed = documentOf(await room.call([...perf, '--rw', 'randrw', '--verify', 'sha256', '--size', '1MiB']));
    for (const part of ['read', 'write']) assert.ok((mixed[part] as { commands: number }).commands > 0, part);
    assert.ok(Number(mixed['checked']) > 0);
    const people = await room.call(['nvme', 'perf', '--runtime', '1', '--iodepth', '1', '--rate-iops', '50']);
    assert.equal(people.status, 0, people.stderr);
    assert.match(people.stdout, /read: \d+ commands\/s[^]*within: 50 %[^]*#[^]*CPU: [^]*longest delay/);
    for (const [args, why] of [
      [['--bs', '1000'], /not a multiple of the block size/],
      [['--bs', '4MiB'], /more than one command transfers/],
      [['--size', '4k', '--numjobs', '2'], /less than --bs/],
      [['--size', '4PiB'], /disk\.img|too large/],
    ] as const) {
      const { status, stderr } = await room.call(['nvme', 'perf', '--runtime', '1', ...args]);
      assert.equal(status, 1);
      assert.match(stderr, why);
    }
    const large = await room.call([...perf, '--size', '257MiB']);
    assert.equal(large.status, 0, large.stderr);
    assert.equal((await room.call(['nvme', 'perf', '--verify', 'sha256'])).status, 2);
    assert.deepEqual(room.leftovers(), []);
    assert.deepEqual(room.processes(), []);
  });

  test('a command that fails on the disk is told as the disk tells it', async () => {
    using room = new Room();
    const device = await disk(room, '--fault', 'do=fail,queue=io,opcode=2,status=641');
    const { status, stderr } = await room.call(['nvme', 'perf', '--device', device, '--nsid', '1', '--runtime', '1']);
    assert.equal(status, 1);
    assert.match(stderr, /read of 8 blocks at LBA \d+ failed: /);
  });

  test('perf fails when the controller does, or has less than was asked for', async () => {
    using room = new Room();
    const device = await disk(room, '--fault', 'do=fatal,queue=io,opcode=2');
    const perf = ['nvme', 'perf', '--device', device, '--nsid', '1', '--runtime', '1'];
    const less = await room.call([...perf, '--size', '65MiB']);
    assert.match(less.stderr, /--size 65 MiB is more than namespace 1 has\nhint: it has 64 MiB/);
    const { status, stderr } = await room.call(perf);
    assert.equal(status, 1);
    assert.match(stderr, /read of 8 blocks at LBA \d+ failed: command aborted by host.*\nhint: .*reset while it ran/);
  });

  test('perf leaves no disk image behind when its output can not be written, or there is no place for one', async () => {
    using room = new Room();
    const shell = (line: string, environment: NodeJS.ProcessEnv): { status: number | null; stderr: string } =>
      spawnSync('/bin/sh', ['-c', line, process.execPath, MAIN], {
        env: { ...process.env, TMPDIR: room.path, ...environment },
        encoding: 'utf8',
      });
    const full = shell('"$0" "$1" nvme perf --runtime 1 >/dev/full', {});
    assert.equal(full.status, 1);
    assert.match(full.stderr, /standard output can not be written/);
    assert.deepEqual(room.leftovers(), []);
    const nowhere = shell('"$0" "$1" nvme perf --runtime 1', { TMPDIR: room.file('none') });
    assert.equal(nowhere.status, 1);
    assert.match(nowhere.stderr, /none: no such file.*\nhint: the disk image needs a temporary folder/);
  });
});
