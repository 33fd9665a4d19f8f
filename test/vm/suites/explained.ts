/** Every limit and refusal that this kernel has for those who want a device or map memory for it: the code, and what it says to do. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { afterEach, before, beforeEach, test } from 'node:test';
import assert from 'node:assert/strict';
import {
  Eal,
  isDmaError,
  KiB,
  MiB,
  type DmaError,
  type ErrorCode,
  type Iova,
  type Mapping,
} from '../../../src/index.js';
import type { ContainerChoice } from '../../../src/entry/driver.js';
import { Type1Space } from '../../../src/vfio/type1.js';
import { attempt, type Outcome } from '../attempt.js';
import { asBooted, bindToVfio, CHOICE, driverOf, EDU, groupOf, kernel, release, sysfs, width } from '../guest.js';
import { DEVICES } from '../machine.js';

/** Some user without any rights. */
const NOBODY = { uid: 65534, lockedKiB: 8 * 1024 };
const PAGE = 4 * KiB;

before(asBooted);
beforeEach(() => bindToVfio([EDU]));
afterEach(() => {
  release([EDU, DEVICES.edu2, DEVICES.edu3]);
});

/** The error that `work` ends with, which has to have this code. */
async function refusal(code: ErrorCode, work: () => unknown): Promise<DmaError> {
  try {
    await work();
  } catch (error) {
    assert.ok(isDmaError(error), String(error));
    assert.equal(error.code, code, error.message);
    return error;
  }
  return assert.fail(`no ${code}`);
}

function mustFail(outcome: Outcome, code: ErrorCode): { message: string; hint: string } {
  assert.ok(outcome !== 'ok', `no ${code}`);
  assert.equal(outcome.code, code, outcome.message);
  return { message: outcome.message, hint: outcome.hint ?? '' };
}

function start(iommu: ContainerChoice = CHOICE): Promise<Eal> {
  return Eal.start({ iommu });
}

/** The character device of a bound device. */
function characterDevice(address: string): string {
  const [name] = readdirSync(`${sysfs(address)}/vfio-dev`);
  return `/dev/vfio/devices/${name}`;
}

/** The nodes that a user needs for {@link EDU}, by the way that is tried here. */
function nodes(): string[] {
  return CHOICE === 'type1' ? ['/dev/vfio/vfio', `/dev/vfio/${groupOf(EDU)}`] : ['/dev/iommu', characterDevice(EDU)];
}

function giveTo(uid: number, paths: readonly string[]): void {
  for (const path of paths) chownSync(path, uid, -1);
}

test('a device that is not there, or that another driver has', async () => {
  await using eal = await start();
  const absent = await refusal('ENODEV', () => eal.probe('pci:0000:00:1e.7'));
  assert.match(absent.message, /no such PCI device .*anydma devices/);
  release([EDU]);
  const unbound = await refusal('ENODEV', () => eal.probe(`pci:${EDU}`));
  assert.match(unbound.message, /no driver has it .*anydma bind 0000:00:02\.0/);
  const other = await refusal('EBUSY', () => eal.probe(`pci:${DEVICES.disk0}`));
  assert.match(other.message, /the driver nvme has it .*anydma bind 0000:00:05\.0/);
  const bridge = await refusal('ENOTSUP', () => eal.probe(`pci:${DEVICES.port0}`));
  assert.match(bridge.message, /bridge/);
});

test('permission: which node, for a user who was given none, some, all', () => {
  const what = { device: `pci:${EDU}`, iommu: CHOICE, maps: [64 * KiB] };
  const needed = nodes();
  giveTo(0, needed);
  const closed = needed.filter(
    (path) =>
      spawnSync('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', 'test', '-w', path]).status !== 0,
  );
  assert.ok(closed.length > 0);
  for (const path of closed) {
    const { message, hint } = mustFail(attempt(what, NOBODY).probe, 'EACCES');
    assert.match(message, new RegExp(`no permission for ${path} `));
    assert.match(hint, new RegExp(`chown .*${path}`));
    giveTo(NOBODY.uid, [path]);
  }
  const { probe, maps } = attempt(what, NOBODY);
  assert.deepEqual([probe, maps], ['ok', ['ok']]);
  giveTo(0, needed);
});

test('permission: left alone, the library takes the way that the user may go', { skip: CHOICE === 'type1' }, () => {
  const what = { device: `pci:${EDU}`, iommu: 'auto', maps: [64 * KiB] } as const;
  giveTo(NOBODY.uid, [`/dev/vfio/${groupOf(EDU)}`]);
  assert.equal(attempt(what, NOBODY).kind, 'vfio-type1');
  giveTo(NOBODY.uid, nodes());
  assert.equal(attempt(what, NOBODY).kind, 'iommufd');
  giveTo(0, [...nodes(), `/dev/vfio/${groupOf(EDU)}`]);
});

test('the locked-memory limit: what it is, what is used, what is needed', () => {
  giveTo(NOBODY.uid, nodes());
  const what = { device: `bus=pci,addr=${EDU}/driver=raw`, iommu: CHOICE, maps: [4 * MiB, 8 * MiB, 2 * MiB] };
  for (const bare of [false, true]) {
    const { probe, maps } = attempt({ ...what, bare }, NOBODY);
    assert.deepEqual([probe, maps[0], maps[2]], ['ok', 'ok', 'ok'], JSON.stringify(maps));
    const { message } = mustFail(maps[1] ?? 'ok', 'ENOMEM');
    assert.match(message, /locked-memory limit/, `bare: ${bare}`);
    assert.match(message, /RLIMIT_MEMLOCK is 8 MiB, 4 MiB of it are used, this mapping needs 8 MiB/, `bare: ${bare}`);
    assert.match(message, /ulimit -l/);
  }
  giveTo(0, nodes());
});

test('a group that is not viable, and because of whom', async () => {
  spawnSync('modprobe', ['uio_pci_generic']);
  writeFileSync(`${sysfs(DEVICES.edu3)}/driver_override`, 'uio_pci_generic');
  writeFileSync('/sys/bus/pci/drivers_probe', DEVICES.edu3);
  assert.equal(driverOf(DEVICES.edu3), 'uio_pci_generic');
  await bindToVfio([DEVICES.edu2]);
  await using eal = await start();
  const error = await refusal('EBUSY', () => eal.probe(`pci:${DEVICES.edu2}`));
  assert.match(error.message, /not viable because of 0000:02:02\.0 \(driver uio_pci_generic\)/);
  assert.match(error.hint ?? '', /vfio-pci|unbind/);
  // Without a driver the neighbour is not in the way; and while the group is in use, no such driver gets it.
  release([DEVICES.edu3]);
  const device = await eal.probe(`pci:${DEVICES.edu2}`);
  writeFileSync(`${sysfs(DEVICES.edu3)}/driver_override`, 'uio_pci_generic');
  assert.throws(() => writeFileSync('/sys/bus/pci/drivers/uio_pci_generic/bind', DEVICES.edu3));
  assert.equal(driverOf(DEVICES.edu3), undefined);
  await eal.remove(device);
});

test('a device that another program has', async (t) => {
  const child = spawn(process.execPath, [new URL('../hold.js', import.meta.url).pathname, EDU], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  await using eal = await start();
  const error = await refusal('EBUSY', () => eal.probe(`pci:${EDU}`));
  assert.match(error.message, /in use/);
  assert.match(error.hint ?? '', /program/);
  if (CHOICE === 'iommufd') {
    // And by the other way.
    await using other = await start('type1');
    const byGroup = await refusal('EBUSY', () => other.probe(`pci:${EDU}`));
    assert.match(byGroup.message, /IOMMU group \d+ is in use/);
  }
  child.kill('SIGKILL');
  await once(child, 'exit');
});

test('one group in two containers', async () => {
  await bindToVfio([DEVICES.edu2, DEVICES.edu3]);
  await using eal = await start();
  using own = eal.containers.create({ name: 'own' });
  const first = await eal.probe(`pci:${DEVICES.edu2}`);
  const error = await refusal('EBUSY', () => eal.probe(`pci:${DEVICES.edu3}`, { container: own }));
  assert.match(error.message, /its IOMMU group \d+ is in container "default", with 0000:02:01\.0/);
  assert.match(error.hint ?? '', /that container/);
  await eal.remove(first);
  const alone = await eal.probe(`pci:${DEVICES.edu3}`, { container: own });
  await eal.remove(alone);
});

test('IOVAs that the IOMMU does not reach', async () => {
  await using eal = await start();
  const device = await eal.probe(`bus=pci,addr=${EDU}/driver=raw`);
  using memory = eal.external.allocate(64 * KiB);
  for (const iova of [0xfee0_0000, 0xfee0_0000 - PAGE, 2 ** width() - PAGE, 2 ** width(), 2 ** 51]) {
    const error = await refusal('ERANGE', () => device.dmaMap(memory, { iova: iova }));
    assert.match(error.message, /0xfee00000/, 'the windows are told');
  }
  using last = device.dmaMap(memory, { iova: 2 ** width() - 64 * KiB });
  assert.equal(last.length, 64 * KiB);
});

test('the edu device reaches 28 bits, and its domain says so', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  using memory = eal.external.allocate(64 * KiB);
  const error = await refusal('ERANGE', () => device.dmaMap(memory, { iova: 2 ** 28 }));
  assert.match(error.message, /\[0x0, 0x10000000\)/);
});

test('the entry limit: what is used, and how many there can be', { skip: CHOICE !== 'type1' }, async () => {
  const parameter = '/sys/module/vfio_iommu_type1/parameters/dma_entry_limit';
  const before = readFileSync(parameter, 'utf8');
  writeFileSync(parameter, '16');
  try {
    await using eal = await start();
    const device = await eal.probe(`bus=pci,addr=${EDU}/driver=raw`);
    using memory = eal.external.allocate(64 * PAGE);
    const page = (n: number): { va: typeof memory.va; length: number } => ({
      va: (memory.va + n * PAGE) as typeof memory.va,
      length: PAGE,
    });
    const { space } = eal.containers.default;
    assert.ok(space instanceof Type1Space);
    const mappings: Mapping[] = [];
    for (let n = 0; n < 15; n++) mappings.push(device.dmaMap(page(n)));
    assert.equal(space.available(), 1);
    // One that the books do not know of, so that it is the kernel that refuses.
    space.map({ va: page(20).va, iova: 0x4000_0000 as Iova, length: PAGE, access: 'read' });
    const byKernel = await refusal('ENOSPC', () => device.dmaMap(page(30)));
    assert.match(byKernel.message, /16 of 16 are used/);
    assert.match(byKernel.hint ?? '', /dma_entry_limit/);
    assert.equal(device.domain?.entries, 15);
    space.unmap({ iova: 0x4000_0000 as Iova, length: PAGE });
    mappings.push(device.dmaMap(page(15)));
    const byBooks = await refusal('ENOSPC', () => device.dmaMap(page(30)));
    assert.match(byBooks.message, /16/);
    mappings.pop()?.unmap();
    using again = device.dmaMap(page(30));
    assert.equal(again.length, PAGE);
    for (const each of mappings) each.unmap();
  } finally {
    writeFileSync(parameter, before);
  }
});

test('memory that can not be pinned', async () => {
  await using eal = await start();
  const device = await eal.probe(`pci:${EDU}`);
  const { memory: port } = eal.platform;
  const va = port.reserve(2 * PAGE, PAGE);
  port.commit(va, { length: 2 * PAGE });
  const memory = eal.external.fromAddress(va, 2 * PAGE);
  // Somebody takes it away without a word.
  port.decommit(va, 2 * PAGE);
  const error = await refusal('EFAULT', () => device.dmaMap(memory));
  assert.match(error.message, /can not pin this memory/);
  assert.deepEqual([device.domain?.entries, device.domain?.bytes], [0, 0]);
  memory.unregister();
  port.unmap(va, 2 * PAGE);
});

const modular = kernel === 'debian' ? false : 'this kernel has no modules';
test('a module that is missing', { skip: modular }, async () => {
  const modprobe = (...args: string[]): void => assert.equal(spawnSync('modprobe', args).status, 0, args.join(' '));
  release([EDU]);
  modprobe('-r', 'vfio-pci');
  try {
    await using eal = await start();
    const error = await refusal('ENOTSUP', () => eal.probe(`pci:${EDU}`));
    assert.match(error.message, /the kernel module vfio-pci is not loaded, and no driver has it/);
    assert.match(error.hint ?? '', /modprobe vfio-pci; then: anydma bind 0000:00:02\.0/);
  } finally {
    modprobe('vfio-pci');
  }
  await bindToVfio([EDU]);
  modprobe('-r', 'vfio_iommu_type1');
  try {
    await using eal = await start();
    const error = await refusal('ENOTSUP', () => eal.probe(`pci:${EDU}`));
    assert.match(error.message, /modprobe vfio_iommu_type1/);
  } finally {
    modprobe('vfio_iommu_type1');
  }
});

test('iommufd, where the kernel has none', { skip: modular }, async () => {
  await using eal = await Eal.start({ iommu: 'iommufd' });
  const error = await refusal('ENOENT', () => eal.probe(`pci:${EDU}`));
  assert.match(error.message, /\/dev\/iommu is not there .*CONFIG_IOMMUFD.*type1/);
});
