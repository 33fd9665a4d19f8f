/** The commands, as users type them: which driver has a device, the main job on a real one, and what is said when it can not be. */
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { afterEach, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { documentOf, Room, type Ended } from '../../shared/command.js';
import {
  asBooted,
  bindToVfio,
  CHOICE,
  driverOf,
  EDU,
  EDU_SECOND,
  groupOf,
  KIND,
  release,
  sysfs,
  width,
} from '../guest.js';
import { DEVICES } from '../machine.js';

const NET = DEVICES.net0;

/** The same by either way. */
const once = CHOICE === 'type1' ? false : 'does not depend on the way to the IOMMU';

before(asBooted);
afterEach(() => release([EDU, EDU_SECOND]));

async function anydma(...args: readonly string[]): Promise<Ended> {
  using room = new Room();
  const ended = await room.run(args);
  assert.deepEqual(room.leftovers(), []);
  return ended;
}

/** One that has to succeed, and says nothing on standard error. */
async function succeed(...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await anydma(...args);
  assert.deepEqual([status, stderr], [0, ''], stdout);
  return stdout;
}

/** The document of a command that has to end with `status`. */
async function document(status: number, ...args: readonly string[]): Promise<Record<string, unknown>> {
  const ended = await anydma(...args, '--json');
  assert.equal(ended.status, status, `${ended.stdout}${ended.stderr}`);
  return documentOf(ended);
}

/** What `anydma devices` says of a PCI device. */
interface PciEntry {
  readonly address: string;
  readonly driver?: string;
  readonly sharesGroupWith: { readonly name: string }[];
  readonly usable: boolean;
  readonly ways: string[];
  readonly problems: { readonly code: string; readonly todo: string }[];
}

test('devices: what there is, who shares a group, and what to do to use it', { skip: once }, async () => {
  const text = await succeed('devices');
  assert.match(text, /^network$/m);
  assert.match(text, /^ {2}0000:00:04\.0 .*\(eth0\) .* e1000e .* no: the driver e1000e has it$/m);
  assert.match(text, /^ {2}0000:00:02\.0 .* no: no driver has it$/m);
  assert.match(text, /anydma bind DEVICE, for DEVICE .*0000:00:02\.0/);
  const { pci } = await document(0, 'devices');
  const entry = (address: string): PciEntry =>
    (pci as PciEntry[]).find((each) => each.address === address) ?? assert.fail(`${address} is not listed`);
  const edu = entry(EDU);
  assert.deepEqual([edu.driver, edu.usable, edu.ways], [undefined, false, []]);
  assert.deepEqual(
    edu.problems.map(({ code, todo }) => [code, todo]),
    [['ENODEV', `anydma bind ${EDU}`]],
  );
  const behind = entry(DEVICES.edu2);
  assert.deepEqual(behind.sharesGroupWith.map(({ name }) => name).sort(), [DEVICES.bridge0, DEVICES.edu3]);
});

test('bind and unbind: there and back, for several devices', { skip: once }, async () => {
  const bound = await document(0, 'bind', EDU, NET);
  const rows = (bound['devices'] as { address: string; ok: boolean; from?: string; to?: string }[]).map(
    ({ address, ok, from, to }) => [address, ok, from, to],
  );
  assert.deepEqual(rows, [
    [EDU, true, undefined, 'vfio-pci'],
    [NET, true, 'e1000e', 'vfio-pci'],
  ]);
  assert.deepEqual([driverOf(EDU), driverOf(NET)], ['vfio-pci', 'vfio-pci']);
  const again = await succeed('bind', '00:02.0');
  assert.match(again, /0000:00:02\.0 .* vfio-pci +vfio-pci +yes, by iommufd or by its group/);

  const { status, stdout, stderr } = await anydma('unbind', EDU, NET);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /0000:00:04\.0 .* vfio-pci +e1000e/);
  assert.match(stderr, /no driver of the kernel's took 0000:00:02\.0/);
  assert.deepEqual([driverOf(EDU), driverOf(NET)], [undefined, 'e1000e']);
});

test('bind: what fails for one device is done for the others', { skip: once }, async () => {
  const { status, stdout, stderr } = await anydma('bind', DEVICES.bridge0, EDU);
  assert.equal(status, 1);
  assert.match(stderr, /bridge/);
  assert.match(stdout, /0000:00:02\.0 .* no driver +vfio-pci/);
  const nothing = await anydma('bind', '0000:00:1e.7');
  assert.equal(nothing.status, 1);
  assert.match(nothing.stderr, /there is no PCI device "0000:00:1e\.7"/);
  const unknown = await anydma('bind', '--driver', 'nonsense', EDU);
  assert.equal(unknown.status, 1);
  assert.match(unknown.stderr, /modprobe nonsense/);
});

test('bind: an interface that carries a route is not taken, unless it is forced', { skip: once }, async () => {
  const ip = (line: string): string => execFileSync('ip', line.split(' '), { encoding: 'utf8' });
  const [name] = readdirSync(`${sysfs(NET)}/net`);
  assert.ok(name !== undefined);
  ip(`address add 192.0.2.1/24 dev ${name}`);
  ip(`link set ${name} up`);
  ip(`route add 198.51.100.0/24 dev ${name}`);
  const { status, stderr } = await anydma('bind', NET);
  assert.equal(status, 1);
  assert.match(stderr, new RegExp(`its interface ${name} carries .*--force`, 's'));
  assert.equal(driverOf(NET), 'e1000e');
  const forced = await anydma('bind', '--force', NET);
  assert.equal(forced.status, 0, forced.stderr);
  assert.match(forced.stderr, new RegExp(`is taken although its interface ${name} carries `));
  assert.match(forced.stdout, /e1000e +vfio-pci/);
  assert.match(await succeed('unbind', NET), /vfio-pci +e1000e/);
});

test('bind --group and --uid: all of a group, and whose files they are then', { skip: once }, async () => {
  await succeed('bind', '--group', '-U', '12345', DEVICES.edu2);
  assert.deepEqual([driverOf(DEVICES.edu2), driverOf(DEVICES.edu3)], ['vfio-pci', 'vfio-pci']);
  const group = groupOf(DEVICES.edu2);
  assert.match(execFileSync('stat', ['-c', '%u', `/dev/vfio/${group}`], { encoding: 'utf8' }), /^12345$/m);
  release([DEVICES.edu2, DEVICES.edu3]);
});

test('a device that is not bound: the line that binds it', async () => {
  for (const command of [
    ['demo', '--device', `pci:${EDU}`],
    ['map', '--size', '4k', '--device', `pci:${EDU}`],
    ['devices', '--device', `pci:${EDU}`],
  ]) {
    const { status, stderr } = await anydma(...command, '--iommu', CHOICE);
    assert.equal(status, 1);
    assert.match(stderr, /no driver has it.*anydma bind 0000:00:02\.0/s);
  }
});

test('demo: the main job on a real device, in each mode', async () => {
  await bindToVfio([EDU]);
  const text = await succeed('demo', '--device', `pci:${EDU}`, '--size', '8KiB', '--mode', 'all', '--iommu', CHOICE);
  assert.match(
    text,
    new RegExp(`^The device is pci:${EDU}, an edu device.*; its memory accesses go by ${KIND}\\.$`, 'm'),
  );
  for (const mode of ['external', 'heap', 'owned']) {
    assert.match(text, new RegExp(`^memory \\(${mode}\\) +0x[0-9a-f]+ +0x[0-9a-f]+ +8 KiB .* 8192 .* yes$`, 'm'));
    // QEMU's IOMMU does not tell the kernel of every fault.
    const refused = new RegExp(
      `^memory \\(${mode}\\): after .* was refused(?: \\(kernel log\\))?:\n {2}0x\\w+ was unmapped`,
      'm',
    );
    assert.match(text, refused);
  }
});

test('demo: 8 KiB unless more is asked for; and for programs', async () => {
  await bindToVfio([EDU]);
  const { ok, areas, afterUnmap } = (await document(0, 'demo', '--device', `pci:${EDU}`, '--iommu', CHOICE)) as {
    ok: boolean;
    areas: { length: number; verified: boolean }[];
    afterUnmap: { refused: boolean; explain: string; reportedBy?: string };
  };
  assert.deepEqual([ok, areas.length, areas[0].length, areas[0].verified], [true, 1, 8192, true]);
  assert.equal(afterUnmap.refused, true);
  assert.match(afterUnmap.explain, /was unmapped/);
  assert.ok([undefined, 'kernel log'].includes(afterUnmap.reportedBy));
});

test('map: in each mode, and what the domain is like', async () => {
  await bindToVfio([EDU]);
  const text = await succeed('map', '--device', `pci:${EDU}`, '--size', '4MiB', '--mode', 'all', '--iommu', CHOICE);
  assert.match(text, new RegExp(`^ {2}${KIND}, in units of 4 KiB`, 'm'));
  // In one piece or in several: that goes by where it is, and by the time they take.
  assert.match(text, /^external .* 4 MiB +4 KiB +[1-9]\d* +read-write +memfd/m);
  assert.match(text, /^owned .* 4 MiB +2 MiB/m);
  const { domain, mappings } = (await document(
    0,
    ...['map', '--device', `bus=pci,addr=${EDU}/driver=raw`, '--size', '64k', '--count', '3', '--iommu', CHOICE],
  )) as { domain: { kind: string; windows: unknown[] }; mappings: { entries: number }[] };
  assert.deepEqual([domain.kind, domain.windows.length], [KIND, 2]);
  assert.equal(mappings.length, 3);
  assert.ok(mappings.every(({ entries }) => entries >= 1));
});

test('map: an address that the IOMMU does not reach', async () => {
  await bindToVfio([EDU]);
  const device = ['--device', `bus=pci,addr=${EDU}/driver=raw`, '--iommu', CHOICE];
  const { status, stderr } = await anydma('map', ...device, '--size', '4k', '--iova', '0xfee00000');
  assert.equal(status, 1);
  assert.match(stderr, /window/);
  const beyond = `0x${(2 ** width()).toString(16)}`;
  const { ok, error } = await document(1, 'map', ...device, '--size', '4k', '--iova', beyond);
  assert.deepEqual([ok, (error as { code: string }).code], [false, 'ERANGE']);
  assert.equal((await anydma('map', ...device)).status, 2);
});

test('devices --device: all about one', async () => {
  await bindToVfio([EDU]);
  const text = await succeed('devices', '--device', `pci:${EDU}`, '--iommu', CHOICE);
  assert.match(text, new RegExp(`^pci:${EDU}, driven by edu$`, 'm'));
  assert.match(text, /^ {2}ids +1234:11e8/m);
  assert.match(text, /BAR0 +rw 1 MiB/);
  assert.match(text, /interrupts +intx 1, msi 1/);
  assert.match(text, new RegExp(`domain +${KIND}`));
});
