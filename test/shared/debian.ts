/** Debian's packages on this machine. */
import { spawnSync } from 'node:child_process';
import { Unavailable } from './cached.js';

/**
 * Where this machine gets Debian's packages from.
 *
 * @throws Unavailable when it gets none
 */
export function debianMirror(): string {
  const format = '$(ORIGIN) $(LABEL) $(REPO_URI)';
  const { stdout } = spawnSync('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'], {
    encoding: 'utf8',
  });
  const uri = /^Debian Debian (\S+)$/m.exec(stdout ?? '')?.[1];
  if (uri === undefined) throw new Unavailable('it needs apt-get with a mirror of Debian (and: apt-get update)');
  return uri;
}
