import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { until } from '../../test/shared/until.js';
import { SocketListener } from './listener.js';

const real = openPlatform();
const skip = real.limitation ?? false;

/** Runs `body` with the path of a socket in a folder of its own; nothing of the platform may be left. */
async function inFolder(
  body: (path: string, platform: ReturnType<typeof trackingPlatform>) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'listener-'));
  const platform = trackingPlatform(real);
  try {
    await body(join(folder, 's'), platform);
    assert.deepEqual(platform.leaks(), []);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('failures in a row are told once, and the socket is watched once, whoever listens again first', { skip }, () =>
  inFolder(async (path, platform) => {
    let [left, watches, told, admitted] = [3, 0, 0, 0];
    const accept = (fd: number): number | undefined => {
      if (left === 0) return platform.sockets.accept(fd);
      left--;
      throw new DmaError({ code: 'EMFILE', operation: 'accept4', reason: 'made to fail' });
    };
    const watch: typeof platform.readiness.watch = (...given) => {
      const watched = platform.readiness.watch(...given);
      watches++;
      return {
        ...watched,
        setRef: (isRef) => watched.setRef(isRef),
        close: () => {
          watches--;
          watched.close();
        },
      };
    };
    const failing = {
      ...platform,
      sockets: { ...platform.sockets, accept },
      readiness: { ...platform.readiness, watch },
    };
    const listener = new SocketListener(failing, path, {
      backlog: 2,
      keepAlive: true,
      admit: (fd) => {
        admitted++;
        platform.files.close(fd);
      },
      failed: () => {
        told++;
        // A client has left, so that there are descriptors: it does not wait for the timer.
        listener.resume();
        assert.equal(watches, 1);
      },
    });
    const client = platform.sockets.connect(path);
    await until(() => admitted === 1);
    assert.deepEqual([told, watches], [1, 1]);
    listener.pause();
    assert.equal(watches, 0);
    listener.close();
    listener.resume();
    listener.failed(new DmaError({ code: 'EMFILE', operation: 'accept4', reason: 'too late' }));
    assert.deepEqual([told, watches, existsSync(path)], [1, 0, false]);
    platform.files.close(client);
  }),
);

test('a file that took the place of the socket is left alone', { skip }, () =>
  inFolder(async (path, platform) => {
    const options = { backlog: 1, keepAlive: false, admit: platform.files.close, failed: () => undefined };
    const listener = new SocketListener(platform, path, options);
    rmSync(path);
    writeFileSync(path, 'of somebody else');
    listener.close();
    assert.ok(existsSync(path));
  }),
);
