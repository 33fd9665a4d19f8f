/**
 * The forwarder between adapters whose cables end in the kernel: its pings are answered, and its TCP goes through. The two hubs that the cables
 * end in have nothing else in common.
 */
import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { after, before, test, type TestContext } from 'node:test';
import { promisify } from 'node:util';
import { until } from '../../shared/until.js';
import { asBooted, bindToVfio, CHOICE, driverOf, sysfs } from '../guest.js';
import { host } from '../host.js';
import { DEVICES, HOTPLUG, HOTPLUG_1, HOTPLUG_2, NET0_HUB } from '../machine.js';

const run = promisify(execFile);
const FAR_HUB = 1;
/** The far kernel's end is in a network namespace of its own. */
const FAR = 'far';
const ip = async (...args: string[]): Promise<unknown> => run('ip', args);

/** An adapter with a cable that ends in a hub. */
async function plugIn(slot: string, hubId: number, address: string): Promise<void> {
  const cable = `cable-${slot}`;
  await host.qmp('netdev_add', { type: 'hubport', id: cable, hubid: hubId });
  await host.deviceAdd({ driver: 'e1000e', id: `nic-${slot}`, bus: slot, netdev: cable });
  await until(() => driverOf(address) === 'e1000e', `the kernel has the adapter in ${slot}`);
}

/** The interface that the kernel has made of an adapter. */
function interfaceOf(address: string): string {
  const [name] = readdirSync(`${sysfs(address)}/net`);
  return name;
}

before(async () => {
  asBooted();
  await until(() => driverOf(DEVICES.net0) === 'e1000e', 'the kernel has net0');
  await plugIn('port0', NET0_HUB, HOTPLUG);
  await plugIn('port1', FAR_HUB, HOTPLUG_1);
  await plugIn('port2', FAR_HUB, HOTPLUG_2);
  await bindToVfio([HOTPLUG, HOTPLUG_1]);
  const near = interfaceOf(DEVICES.net0);
  await ip('address', 'add', '10.82.57.1/24', 'dev', near);
  await ip('link', 'set', near, 'up');
  await ip('netns', 'add', FAR);
  const far = interfaceOf(HOTPLUG_2);
  await ip('link', 'set', far, 'netns', FAR);
  await ip('-n', FAR, 'address', 'add', '10.82.57.2/24', 'dev', far);
  await ip('-n', FAR, 'link', 'set', far, 'up');
});

after(async () => {
  await ip('address', 'flush', 'dev', interfaceOf(DEVICES.net0));
  await ip('netns', 'delete', FAR);
  for (const slot of ['port0', 'port1', 'port2']) await host.deviceDel(`nic-${slot}`);
  for (const slot of ['port0', 'port1', 'port2']) {
    await host.deviceGone(`nic-${slot}`);
    await host.qmp('netdev_del', { id: `cable-${slot}` });
  }
  asBooted();
});

/** Starts the command; what it returns ends it. */
function forward(t: TestContext, ...args: string[]): () => Promise<void> {
  const command = ['dist/src/cli/main.js', 'forward', '--iommu', CHOICE, ...args];
  const child = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  return async () => {
    const closed = once(child, 'close');
    child.kill('SIGINT');
    await closed;
  };
}

/** Pings until something answers. */
async function answers(address: string): Promise<void> {
  await until(
    async () =>
      await run('busybox', ['ping', '-c', '1', '-W', '1', address]).then(
        () => true,
        () => false,
      ),
    `${address} answers`,
  );
}

test('the pings of the kernel are answered by icmpecho, for any address', async (t) => {
  const end = forward(t, '--port', `pci:${HOTPLUG}`, '--mode', 'icmpecho');
  await answers('10.82.57.77');
  for (const bytes of [0, 56, 1472]) {
    const { stdout } = await run('busybox', ['ping', '-A', '-c', '50', '-s', `${bytes}`, '10.82.57.78']);
    assert.match(stdout, /50 packets transmitted, 50 packets received, 0% packet loss/);
  }
  await end();
});

const skip = spawnSync('iperf3', ['--version']).status === 0 ? false : 'iperf3 is not here';
test('iperf3 goes through a pair of adapters, from kernel to kernel and back', { skip }, async (t) => {
  const end = forward(t, ...['--port', `pci:${HOTPLUG}`, '--port', `pci:${HOTPLUG_1}`, '--mode', 'io']);
  await answers('10.82.57.2');
  const server = spawn('ip', ['netns', 'exec', FAR, 'iperf3', '-s'], { stdio: 'ignore' });
  t.after(() => server.kill('SIGKILL'));
  await until(
    async () => (await run('ip', ['netns', 'exec', FAR, 'ss', '-tln'])).stdout.includes(':5201'),
    'the server listens',
  );
  for (const direction of [[], ['-R']]) {
    const { stdout } = await run('iperf3', ['-c', '10.82.57.2', '-t', '3', '-J', ...direction]);
    const { end: sums } = JSON.parse(stdout) as { end: { sum_received: { bytes: number; bits_per_second: number } } };
    const { bytes, bits_per_second: rate } = sums.sum_received;
    t.diagnostic(`${direction.length === 0 ? 'there' : 'back'}: ${(rate / 1e6).toFixed(1)} Mbit/s`);
    assert.ok(bytes > 10_000, stdout);
  }
  await end();
});
