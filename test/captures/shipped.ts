/** The captures in the source packages of tcpdump and Wireshark. */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { madeOnce, Unavailable, type Run } from '../shared/cached.js';
import { debianMirror } from '../shared/debian.js';

const KEYS = '/usr/share/keyrings/debian-archive-keyring.gpg';

/**
 * The directory below `cache` that has them, got at first use.
 *
 * @param say is told what is being done
 * @throws Unavailable when they can not be had here
 */
export function shippedCaptures(cache: string, say: (line: string) => void): Promise<string> {
  return madeOnce(cache, 'shipped-1', fetchCaptures, (what) => say(`getting ${what} ...`));
}

async function fetchCaptures(directory: string, run: Run): Promise<void> {
  const suite = /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1];
  const mirror = debianMirror();
  if (suite === undefined) throw new Unavailable('this is no release of Debian');
  // Lists of its own, so that those of the machine stay as they are.
  const apt = join(directory, 'apt');
  for (const name of ['lists/partial', 'cache/archives/partial']) mkdirSync(join(apt, name), { recursive: true });
  writeFileSync(join(apt, 'sources'), `deb-src [signed-by=${KEYS}] ${mirror} ${suite} main\n`);
  const options = [
    ...['-o', `Dir::Etc::SourceList=${join(apt, 'sources')}`, '-o', 'Dir::Etc::SourceParts=-'],
    ...['-o', `Dir::State::Lists=${join(apt, 'lists')}`, '-o', `Dir::Cache=${join(apt, 'cache')}`],
    ...['-o', 'Acquire::Retries=5', '-o', 'APT::Sandbox::User=root'],
  ];
  await run({ what: 'lists of source packages', command: ['apt-get', ...options, 'update', '-q'] });
  await run({
    what: 'the sources of tcpdump and wireshark',
    command: ['apt-get', ...options, 'source', '--download-only', 'tcpdump', 'wireshark'],
    cwd: directory,
  });
  for (const name of readdirSync(directory).filter((file) => /\.orig\.tar\.\w+$/.test(file)))
    await run({
      what: `the captures in ${name}`,
      command: ['tar', '-xf', name, '--wildcards', name.startsWith('tcpdump') ? '*/tests/*' : '*/test/captures/*'],
      cwd: directory,
    });
  for (const name of readdirSync(directory, { withFileTypes: true }))
    if (name.isFile() || name.name === 'apt') rmSync(join(directory, name.name), { recursive: true });
}
