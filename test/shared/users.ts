/** A user without rights, for tests that root runs. */
import assert from 'node:assert/strict';
import { spawnSync, type SpawnSyncReturns } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/** Its number; its group has the same. */
export const NOBODY = 65_534;
/** The library as such a user's program imports it. */
const PACKAGE = fileURLToPath(new URL('../../src/index.js', import.meta.url));

/**
 * Why a program of this library can not run as {@link NOBODY}; `undefined` when it can. A checkout or a Node.js in root's home is
 * out of reach.
 *
 * @param folders what else that user has to be able to enter
 */
export function whyNotAsNobody(...folders: readonly string[]): string | undefined {
  if (process.geteuid?.() !== 0) return 'it takes root to be another user';
  const needs = [['-x', process.execPath], ['-r', PACKAGE], ...folders.map((folder) => ['-x', folder])];
  for (const [how, path] of needs) {
    const { error, status } = asNobody('/bin/sh', ['-c', 'test "$0" "$1"', how, path]);
    if (error !== undefined) return `no process can be started as user ${NOBODY}: ${error.message}`;
    if (status !== 0) return `user ${NOBODY} can not get at ${path}`;
  }
  return undefined;
}

/** Runs an ES module as {@link NOBODY} and returns what it printed. It has to end well. */
export function runAsNobody(program: string): string {
  const { error, status, stdout, stderr } = asNobody(process.execPath, ['--input-type=module', '-e', program]);
  assert.ifError(error);
  assert.equal(status, 0, stderr);
  return stdout;
}

function asNobody(command: string, args: readonly string[]): SpawnSyncReturns<string> {
  return spawnSync(command, args, { uid: NOBODY, gid: NOBODY, cwd: '/', encoding: 'utf8' });
}
