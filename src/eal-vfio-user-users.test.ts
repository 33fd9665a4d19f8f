/** Servers of other users at the sockets that this process connects to. Needs root, to be two users. */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { asNobody, NOBODY } from '../test/hostile/nobody.js';
import { Eal } from './eal.js';
import { isDmaError } from './errors.js';
import { openPlatform } from './platform/open.js';
import { serveScripted } from '../test/fakes/vfio-user/server.js';

const platform = openPlatform();
const skip = platform.limitation ?? (process.getuid?.() === 0 ? false : 'only root can be two users');

test('a server of another user in a folder for all is refused, unless it is named', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'users-'));
  const socket = join(folder, 'socket');
  let messages = 0;
  const serveAs = (as: <T>(work: () => T) => T): (() => void) =>
    as(() =>
      serveScripted(platform, socket, () => {
        messages++;
        return undefined;
      }),
    );
  const probe = async (keys = ''): Promise<void> => {
    await using eal = await Eal.start({ drivers: [], memory: { noHuge: true } });
    await eal.probe(`bus=vfio-user,name=${socket}${keys}/driver=raw`);
  };
  const isRefused = (error: unknown): boolean => isDmaError(error, 'EACCES');
  try {
    chmodSync(folder, 0o777);
    let end = serveAs(asNobody);
    try {
      await assert.rejects(probe(), (error) => {
        assert.ok(isDmaError(error, 'EACCES'), String(error));
        assert.match(error.reason, new RegExp(`as user ${NOBODY}`));
        assert.ok(error.hint?.includes(`user=${NOBODY}`), error.hint);
        return true;
      });
      await assert.rejects(probe(',user=12345'), isRefused);
      assert.equal(messages, 0, 'a server that is refused gets no message');
      await probe(`,user=${NOBODY}`);
      assert.ok(messages > 0);
      // Nobody else can make sockets here: whoever may write to it has put this one here.
      chmodSync(folder, 0o755);
      await probe();
    } finally {
      end();
    }
    rmSync(socket, { force: true });
    chmodSync(folder, 0o777);
    end = serveAs((work) => work());
    try {
      await probe();
      await assert.rejects(probe(`,user=${NOBODY}`), isRefused);
    } finally {
      end();
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
