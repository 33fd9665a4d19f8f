/** Devices that are in use, in every way that this machine can use one: they are not taken, and who uses them is said. */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { afterEach, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { PciBinder } from '../../../src/bus/pci/bind.js';
import { Room, type Ended } from '../../shared/command.js';
import { openPlatform } from '../../../src/platform/open.js';
import { until } from '../../shared/until.js';
import { asBooted, bindToVfio, driverOf, EDU, EDU_SECOND, release, sysfs } from '../guest.js';
import { SHARES } from '../initramfs.js';
import { DEVICES } from '../machine.js';

const DISK = DEVICES.disk0;
const NET = DEVICES.net0;
const NODE = '/dev/nvme0n1';
const MOUNT = '/run/in-use';

before(() => {
  asBooted();
  mkdirSync(MOUNT, { recursive: true });
});

/** What a test has to undo, last first. */
const undo: (() => void)[] = [];
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
  // The next test finds everything free again, and so it was the use that was in the way.
  assert.deepEqual(usesOf(DISK), []);
});

function run(command: string, ...args: readonly string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

const sh = (line: string): string => run('sh', '-ec', line);

/** Refused, with the driver left in place. Without the command, which takes seconds to start. */
function refusal(address: string): string {
  const binder = new PciBinder(openPlatform().kernel);
  const driver = driverOf(address);
  const [{ error, to }] = binder.bind(binder.resolve([address]));
  assert.equal(error?.code, 'EBUSY', String(error));
  assert.deepEqual([to, driverOf(address)], [driver, driver]);
  return error.message;
}

/** Who uses it, without claiming anything for longer than it takes to ask. */
function usesOf(address: string): string[] {
  const binder = new PciBinder(openPlatform().kernel);
  const [{ uses, unknown }] = binder.plan(binder.resolve([address]));
  assert.deepEqual(unknown, []);
  return uses.map(({ text }) => text);
}

async function anydma(...args: readonly string[]): Promise<Ended> {
  using room = new Room();
  return await room.run(args);
}

/** A program that goes on until the test is over, once it has said so. */
async function background(line: string, ...prefix: readonly string[]): Promise<ChildProcess> {
  const [command, ...args] = [...prefix, 'sh', '-ec', `${line}; echo ready; exec sleep 1000`];
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  undo.push(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

test('swap: the commands refuse, say what it is, and propose nothing', async () => {
  run('mkswap', NODE);
  run('swapon', NODE);
  undo.push(() => run('swapoff', NODE));
  const { status, stderr } = await anydma('bind', DISK);
  assert.equal(status, 1);
  assert.match(stderr, /in use: its disk nvme0n1 is swapped to.*\n?hint: .*swapoff \/dev\/nvme0n1.*--force/s);
  assert.equal(driverOf(DISK), 'nvme');
  assert.doesNotMatch(readFileSync('/proc/swaps', 'utf8'), /deleted/);
  const listed = await anydma('devices');
  assert.match(listed.stdout, /0000:00:05\.0 .* no: its disk nvme0n1 is swapped to$/m);
  assert.doesNotMatch(listed.stdout, /anydma bind .*0000:00:05\.0/);
  const dry = await anydma('bind', '--dry-run', '--json', DISK, EDU);
  assert.equal(dry.status, 1);
  const { devices } = JSON.parse(dry.stdout) as { devices: { action: string; usedBy: string[] }[] };
  assert.deepEqual(
    devices.map(({ action, usedBy }) => [action, usedBy]),
    [
      ['refuse', ['its disk nvme0n1 is swapped to']],
      ['bind', []],
    ],
  );
  assert.equal(driverOf(EDU), undefined);
});

test('swap by a node that was removed since', () => {
  const node = '/dev/another';
  const make = (): string => sh(`mknod ${node} b $(tr : ' ' </sys/class/block/nvme0n1/dev)`);
  make();
  run('mkswap', node);
  run('swapon', node);
  rmSync(node);
  undo.push(() => {
    make();
    run('swapoff', node);
    rmSync(node);
  });
  assert.match(
    refusal(DISK),
    /its disk nvme0n1 is held by the kernel for an unknown purpose, perhaps for the swap area \/dev\/another/,
  );
});

test('a file system, also one that only other processes see, or nobody any more', async () => {
  run('mkfs.ext4', '-qF', NODE);
  run('mount', NODE, MOUNT);
  assert.match(refusal(DISK), /its disk nvme0n1 is mounted at \/run\/in-use.*umount \/run\/in-use/);
  const reader = await background(`exec 3>${MOUNT}/file`);
  run('umount', '-l', MOUNT);
  assert.match(refusal(DISK), /its disk nvme0n1 is held by the kernel for an unknown purpose/);
  await end(reader);
  await until(() => usesOf(DISK).length === 0, 'the file system is gone');
  const other = await background(`mount ${NODE} ${MOUNT}`, 'unshare', '-m');
  assert.doesNotMatch(readFileSync('/proc/self/mountinfo', 'utf8'), /in-use/);
  assert.match(refusal(DISK), /its disk nvme0n1 is mounted at \/run\/in-use for process \d+/);
  await end(other);
  await until(() => usesOf(DISK).length === 0, 'the file system is gone');
});

test('a volume of device-mapper, and what is mounted upon it', () => {
  sh(`dmsetup --noudevsync create upon --table "0 65536 linear ${NODE} 0"`);
  undo.push(() => run('dmsetup', '--noudevsync', 'remove', 'upon'));
  assert.match(refusal(DISK), /its disk nvme0n1 is held by dm-\d+ \(device-mapper upon\).*dmsetup remove upon/);
  const name = readdirSync('/sys/class/block').find((each) => each.startsWith('dm-')) ?? '';
  run('mkfs.ext4', '-qF', `/dev/${name}`);
  run('mount', `/dev/${name}`, MOUNT);
  undo.push(() => run('umount', MOUNT));
  assert.match(refusal(DISK), /dm-\d+ \(device-mapper upon\) above its disk nvme0n1 is mounted at \/run\/in-use/);
});

test('an array', () => {
  writeFileSync('/sys/module/md_mod/parameters/new_array', 'md7');
  const md = '/sys/block/md7/md';
  undo.push(() => writeFileSync(`${md}/array_state`, 'clear'));
  const set = (file: string, value: string): void => writeFileSync(`${md}/${file}`, value);
  set('level', 'raid1');
  set('raid_disks', '1');
  set('new_dev', readFileSync('/sys/class/block/nvme0n1/dev', 'utf8').trim());
  assert.match(refusal(DISK), /its disk nvme0n1 is held by/);
});

test('a loop of the disk, a partition, and a program that has it open', async () => {
  const loop = run('losetup', '-f', '--show', NODE).trim();
  assert.match(refusal(DISK), /its disk nvme0n1 is held by loop\d+ \(loop of \/dev\/nvme0n1\)/);
  run('losetup', '-d', loop);
  await until(() => usesOf(DISK).length === 0, 'the loop is gone');
  const reader = await background(`exec 3<${NODE}`);
  assert.match(refusal(DISK), new RegExp(`process ${reader.pid ?? 0} \\(\\S+\\) has /dev/nvme0n1 open`));
  await end(reader);
  const control = await background('exec 3</dev/nvme0');
  assert.match(refusal(DISK), /has \/dev\/nvme0 open/);
  await end(control);
});

test('the file systems that this very guest lives on: one is seen, the other is below the root', () => {
  const directory = '/sys/bus/virtio/devices';
  const addresses = new Map(
    readdirSync(directory).map((name) => [
      readFileSync(`${directory}/${name}/mount_tag`, 'latin1').replace(/\0|\n/g, ''),
      readlinkSync(`${directory}/${name}`).split('/').at(-2) ?? '',
    ]),
  );
  const guest = addresses.get(SHARES.GUEST) ?? assert.fail('no share');
  assert.match(refusal(guest), /it is in use: the host's file system \w+, mounted at \S+, comes through it/);
  const host = addresses.get(SHARES.HOST) ?? assert.fail('no root');
  assert.match(refusal(host), /is not known whether it is in use: the host's file system \w+ comes through it/);
});

test('routes of other tables and of VRFs, addresses, ports of bridges, other network namespaces', async () => {
  const name = (): string => readdirSync(`${sysfs(NET)}/net`)[0] ?? '';
  const eth = name();
  assert.deepEqual(usesOf(NET), []);
  sh(`ip link set ${eth} up; ip route add 198.51.100.0/24 dev ${eth} table 1234`);
  assert.match(refusal(NET), /carries the route to 198\.51\.100\.0\/24 of table 1234/);
  sh(`ip route flush table 1234; ip link add red type vrf table 77; ip link set red up; ip link set ${eth} master red`);
  sh(`ip address add 192.0.2.1/24 dev ${eth}`);
  assert.match(refusal(NET), /carries the route to 192\.0\.2\.0\/24 of table 77/);
  sh(`ip link delete red; ip address flush dev ${eth}; ip address add 203.0.113.1/32 dev ${eth}`);
  assert.match(refusal(NET), /has the address 203\.0\.113\.1/);
  sh(`ip address flush dev ${eth}; ip link add name br7 type bridge; ip link set ${eth} master br7`);
  assert.match(refusal(NET), /is a port of br7/);
  sh(
    `ip link delete br7; ip link add link ${eth} name upper7 type macvlan; ip address add 10.7.0.1/24 dev upper7; ip link set upper7 up`,
  );
  assert.match(refusal(NET), /carries the route to 10\.7\.0\.0\/24 by upper7/);
  sh(`ip link delete upper7; ip link set ${eth} down`);
  assert.deepEqual(usesOf(NET), []);
  const other = await background('true', 'unshare', '-n');
  run('ip', 'link', 'set', eth, 'netns', String(other.pid));
  assert.match(refusal(NET), /its network interface is in another network namespace/);
  await end(other);
  await until(() => name() !== '', 'the interface is back');
  assert.deepEqual(usesOf(NET), []);
});

test('what nobody uses is taken, and comes back', async () => {
  const binder = new PciBinder(openPlatform().kernel);
  assert.deepEqual(
    binder.bind(binder.resolve([DISK, NET])).map(({ to, error }) => [to, error]),
    [
      ['vfio-pci', undefined],
      ['vfio-pci', undefined],
    ],
  );
  assert.equal(existsSync(NODE), false);
  assert.deepEqual(
    binder.unbind(binder.resolve([DISK, NET])).map(({ to, error }) => [to, error]),
    [
      ['nvme', undefined],
      ['e1000e', undefined],
    ],
  );
  await until(() => existsSync(NODE), 'the disk is back');
});

test('a device whose id vfio-pci was told is taken again: no success', () => {
  const all = [EDU, EDU_SECOND, DEVICES.edu2, DEVICES.edu3];
  // All that nobody has are taken at once.
  writeFileSync('/sys/bus/pci/drivers/vfio-pci/new_id', '1234 11e8');
  undo.push(() => release(all));
  const binder = new PciBinder(openPlatform().kernel);
  const unbind = (): [string | undefined, string | undefined, string] => {
    const [{ to, error }] = binder.unbind(binder.resolve([EDU]));
    return [to, error?.code, error?.message ?? ''];
  };
  const [to, code, message] = unbind();
  assert.deepEqual([to, code], ['vfio-pci', 'EBUSY']);
  assert.match(message, /vfio-pci took it again.*echo "1234 11e8" > \S+remove_id/);
  writeFileSync('/sys/bus/pci/drivers/vfio-pci/remove_id', '1234 11e8');
  assert.deepEqual(unbind(), [undefined, undefined, '']);
});

test('a device that a program drives by VFIO is not taken from it', async () => {
  await bindToVfio([EDU]);
  undo.push(() => release([EDU]));
  const child = spawn(process.execPath, [new URL('../hold.js', import.meta.url).pathname, EDU], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  undo.push(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  const binder = new PciBinder(openPlatform().kernel);
  const [{ error, to }] = binder.unbind(binder.resolve([EDU]));
  assert.deepEqual([error?.code, to], ['EBUSY', 'vfio-pci']);
  assert.match(error?.message ?? '', new RegExp(`process ${child.pid ?? 0} \\(\\S+\\) has /dev/\\S+ open`));
  await end(child);
});
