import assert from 'node:assert/strict';
import { fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { until } from '../../test/shared/until.js';
import { VfioUserClient } from './client.js';
import { spawnDevice } from './device-process.js';
import { DEVICE_NAMES, deviceModel, isDeviceName } from './devices/catalog.js';

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe('device process', { skip: openPlatform().limitation ?? false }, () => {
  for (const name of DEVICE_NAMES)
    test(`${name} serves, and leaves nothing`, async () => {
      const device = await spawnDevice(name, { maxDmaMaps: 5 });
      assert.equal(statSync(dirname(device.socketPath)).mode & 0o777, 0o700);
      const client = await VfioUserClient.connect(openPlatform(), device.socketPath);
      assert.equal(client.capabilities.maxDmaMaps, 5);
      await Promise.all([device.close(), device.close()]);
      assert.ok(!isRunning(device.pid));
      assert.ok(!existsSync(dirname(device.socketPath)));
      await assert.rejects(client.regionReadAsync(0, 0, new Uint8Array(4)), (error) => isDmaError(error, 'ECONNRESET'));
      client.close();
    });

  test('options that are refused are told', async () => {
    await assert.rejects(spawnDevice('edu', { device: { dmaMaskBits: 99 } }), (error) => {
      assert.ok(isDmaError(error, 'EINVAL'));
      assert.match(error.reason, /dmaMaskBits/);
      return true;
    });
  });

  for (const end of ['kills', 'exits', 'runs dry'])
    test(`ends when its parent ${end}`, async () => {
      const what =
        { kills: "process.kill(process.pid, 'SIGKILL')", exits: 'process.exit(3)', 'runs dry': '0' }[end] ?? '';
      const module = JSON.stringify(new URL('./device-process.js', import.meta.url).href);
      const program = `const { spawnDevice } = await import(${module});
        const d = await spawnDevice('edu');
        await new Promise((done) => process.stdout.write(JSON.stringify([d.pid, d.socketPath]), done));
        ${what};`;
      const parent = spawn(process.execPath, ['--input-type=module', '-e', program], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let text = '';
      parent.stdout.on('data', (data) => (text += String(data)));
      await new Promise((resolve) => parent.once('close', resolve));
      const [pid, socketPath] = JSON.parse(text) as [number, string];
      await until(() => !isRunning(pid));
      await until(() => !existsSync(dirname(socketPath)));
    });
});

describe('the program of a device process', { skip: openPlatform().limitation ?? false }, () => {
  test('whose parent ends, or lets go of it, while it starts: it ends too, and says nothing', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'anydma-'));
    const socketPath = join(directory, 'copy.sock');
    const program = fileURLToPath(new URL('./device-process-main.js', import.meta.url));
    const argument = JSON.stringify({ name: 'copy', directory, socketPath, options: {} });
    const child = fork(program, [argument], { execArgv: [], stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    child.disconnect();
    const { stderr } = child;
    assert.ok(stderr !== null);
    const [said] = await Promise.all([text(stderr), once(child, 'exit')]);
    assert.equal(said, '');
    assert.ok(!existsSync(directory), 'its folder is left');
  });
});

test('devices by name', () => {
  assert.ok(isDeviceName('edu') && !isDeviceName('toString') && !isDeviceName(''));
  assert.equal(typeof deviceModel('copy'), 'function');
});
