/**
 * The two kernels that guests boot.
 *
 * - `debian`: Debian's own package for this architecture, downloaded and unpacked, not installed. It has modules, VFIO by
 *   groups, and no iommufd.
 * - `built`: Debian's newest kernel source, built with kernel.config. Everything is built in: VFIO by groups and by devices,
 *   iommufd, no-IOMMU mode, RDMA in software.
 *
 * Both are made at first use and kept in a cache directory; what is there is used, whatever else Debian may have by now.
 * To get newer ones, remove the directory.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { madeOnce, Unavailable } from '../shared/cached.js';
import type { Run } from '../shared/cached.js';
import { debianMirror } from '../shared/debian.js';

export const KERNELS = ['debian', 'built'] as const;
export type KernelName = (typeof KERNELS)[number];

/** A kernel that is ready to boot. */
export interface Kernel {
  readonly name: KernelName;
  /** Where all of it is. */
  readonly directory: string;
  /** The compressed image. */
  readonly image: string;
  /** What `uname -r` says in the guest. */
  readonly release: string;
  /** Is there `lib/modules` in {@link directory}? */
  readonly modular: boolean;
  /** The kernel's headers for programs; only of the kernel that is built. */
  readonly headers: string | undefined;
}

/** From the working directory, which is the root of the checkout. */
const CONFIG = 'test/vm/kernel.config';

/** The release whose backports have the kernel source, and its signing key. */
const SUITE = 'trixie-backports';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** What the build needs: a program or a header, and its Debian package. */
const BUILD_NEEDS: readonly (readonly [string, string])[] = [
  ['/usr/bin/gcc', 'gcc'],
  ['/usr/bin/make', 'make'],
  ['/usr/bin/flex', 'flex'],
  ['/usr/bin/bison', 'bison'],
  ['/usr/bin/bc', 'bc'],
  ['/usr/bin/xz', 'xz-utils'],
  ['/usr/include/libelf.h', 'libelf-dev'],
  ['/usr/include/openssl/opensslv.h', 'libssl-dev'],
  [KEYRING, 'debian-archive-keyring'],
];

/**
 * The kernel of that name, made at first use.
 *
 * @param say is told what is being done
 * @throws Unavailable when it can not be made here
 */
export async function prepareKernel(
  name: KernelName,
  cache: string,
  say: (line: string) => void,
  signal: AbortSignal,
): Promise<Kernel> {
  const tell = (line: string): void => say(`${name} kernel: ${line}`);
  const directory = await (name === 'debian' ? debianKernel : builtKernel)(cache, tell, signal);
  const headers = join(directory, 'include');
  return {
    name,
    directory,
    image: join(directory, 'vmlinuz'),
    release: readFileSync(join(directory, 'release'), 'utf8').trim(),
    modular: existsSync(join(directory, 'lib')),
    headers: existsSync(headers) ? headers : undefined,
  };
}

async function debianKernel(cache: string, say: (line: string) => void, signal: AbortSignal): Promise<string> {
  const there = newestEntry(cache, /^debian-\d/);
  if (there !== undefined) return there;
  const found = newestPackage([], /^linux-image-\d[\w.+]*-amd64$/);
  if (found === undefined) throw new Unavailable('apt knows no linux-image-*-amd64 (apt-get update may help)');
  return madeOnce(
    cache,
    `debian-${found.version}`,
    (directory, run) => unpack(found.name, directory, run),
    say,
    signal,
  );
}

async function unpack(name: string, directory: string, run: Run): Promise<void> {
  await run({ what: `getting ${name}`, command: ['apt-get', ...UNSANDBOXED, 'download', name], cwd: directory });
  const file = readdirSync(directory).find((each) => each.endsWith('.deb')) ?? '';
  await run({ what: `unpacking ${file}`, command: ['dpkg-deb', '--extract', file, 'all'], cwd: directory });
  // Later releases have it below /usr.
  const lib = ['all/lib', 'all/usr/lib']
    .map((each) => join(directory, each))
    .find((each) => existsSync(join(each, 'modules')));
  const release = lib === undefined ? undefined : readdirSync(join(lib, 'modules'))[0];
  if (lib === undefined || release === undefined) throw new Unavailable(`${file} has no modules`);
  renameSync(join(directory, 'all/boot', `vmlinuz-${release}`), join(directory, 'vmlinuz'));
  mkdirSync(join(directory, 'lib'));
  renameSync(join(lib, 'modules'), join(directory, 'lib/modules'));
  await run({ what: 'indexing its modules', command: ['depmod', '-b', directory, release] });
  writeFileSync(join(directory, 'release'), `${release}\n`);
  for (const left of ['all', file]) rmSync(join(directory, left), { recursive: true });
}

async function builtKernel(cache: string, say: (line: string) => void, signal: AbortSignal): Promise<string> {
  const config = createHash('sha256').update(readFileSync(CONFIG)).digest('hex').slice(0, 12);
  const there = newestEntry(cache, new RegExp(`^built-\\d.*-${config}$`));
  if (there !== undefined) return there;
  const missing = BUILD_NEEDS.filter(([path]) => !existsSync(path)).map(([, name]) => name);
  if (missing.length > 0) throw new Unavailable(`to build it, install: apt-get install ${missing.join(' ')}`);

  // Package lists of its own, with apt's own verification, because this machine's may lack the release.
  const lists = mkdtempSync(join(tmpdir(), 'anydma-apt-'));
  try {
    const apt = privateApt(lists);
    const update = spawnSync('apt-get', [...apt, 'update', '-qq'], { encoding: 'utf8' });
    const wanted = /^linux-source-\d+\.\d+$/;
    const own = update.status === 0 ? newestPackage(apt, wanted) : undefined;
    if (own === undefined)
      say(`${SUITE} can not be had (${update.stderr.trim()}): taking what this machine's release has`);
    const found = own ?? newestPackage([], wanted);
    if (found === undefined) throw new Unavailable('apt knows no linux-source-* (apt-get update may help)');
    const make = (directory: string, run: Run): Promise<void> =>
      build(found.name, own === undefined ? UNSANDBOXED : apt, directory, run, say);
    return await madeOnce(cache, `built-${found.version}-${config}`, make, say, signal);
  } finally {
    rmSync(lists, { recursive: true });
  }
}

async function build(
  name: string,
  apt: readonly string[],
  directory: string,
  run: Run,
  say: (line: string) => void,
): Promise<void> {
  await run({ what: `getting ${name}`, command: ['apt-get', ...apt, 'download', name], cwd: directory });
  const file = readdirSync(directory).find((each) => each.endsWith('.deb')) ?? '';
  await run({ what: `unpacking ${file}`, command: ['dpkg-deb', '--extract', file, 'all'], cwd: directory });
  const source = join(directory, 'all/usr/src');
  await run({ what: 'unpacking its source', command: ['tar', '-xf', `${name}.tar.xz`], cwd: source });
  const cwd = join(source, name);
  const configure = 'make allnoconfig && scripts/kconfig/merge_config.sh -m .config "$0" && make olddefconfig';
  await run({ what: 'configuring', command: ['sh', '-c', configure, resolve(CONFIG)], cwd });
  const watch = (lines: readonly string[]): void => {
    const compiled = lines.filter((line) => /^ {2}(CC|AS|LD|AR) /.test(line)).length;
    say(`building: ${compiled} files so far, of some 2400`);
  };
  const jobs = `-j${availableParallelism()}`;
  await run({ what: `building ${name}, which takes 8 to 30 minutes`, command: ['make', jobs, 'bzImage'], cwd, watch });
  await run({ what: 'keeping its headers', command: ['make', 'headers'], cwd });
  keep(cwd, directory);
  for (const left of ['all', file]) rmSync(join(directory, left), { recursive: true });
}

/** What is kept of a built kernel's source tree. */
function keep(tree: string, directory: string): void {
  cpSync(join(tree, 'arch/x86/boot/bzImage'), join(directory, 'vmlinuz'));
  cpSync(join(tree, '.config'), join(directory, 'config'));
  cpSync(join(tree, 'usr/include'), join(directory, 'include'), {
    recursive: true,
    filter: (each) => !/\/(\.[^/]*|Makefile|headers_check\.pl)$/.test(each),
  });
  writeFileSync(join(directory, 'release'), readFileSync(join(tree, 'include/config/kernel.release')));
}

/** The directories here are not for apt's own user. */
const UNSANDBOXED = ['-o', 'APT::Sandbox::User=root'];

/** Options that make apt use one source, and state below `directory`. */
function privateApt(directory: string): string[] {
  const place = (name: string): string => {
    mkdirSync(join(directory, name, 'partial'), { recursive: true });
    return join(directory, name);
  };
  const sources = join(directory, 'sources.list');
  writeFileSync(sources, `deb [signed-by=${KEYRING}] ${debianMirror()} ${SUITE} main\n`);
  const settings = [
    `Dir::Etc::sourcelist=${sources}`,
    'Dir::Etc::sourceparts=/dev/null',
    `Dir::State::lists=${place('lists')}`,
    `Dir::Cache=${place('cache')}`,
    'Acquire::Retries=5',
    // A failed download is a failure, not a warning.
    'APT::Update::Error-Mode=any',
  ];
  return [...UNSANDBOXED, ...settings.flatMap((each) => ['-o', each])];
}

/** The package with the newest version of those whose name matches, and that version. */
function newestPackage(apt: readonly string[], name: RegExp): { name: string; version: string } | undefined {
  const { stdout } = spawnSync('apt-cache', [...apt, 'search', '--names-only', '^linux-(image|source)-'], {
    encoding: 'utf8',
  });
  const names = (stdout ?? '')
    .split('\n')
    .map((line) => line.split(' ')[0] ?? '')
    .filter((each) => name.test(each));
  const newest = names.sort(byNumbers).at(-1);
  if (newest === undefined) return undefined;
  const shown = spawnSync('apt-cache', [...apt, 'show', '--no-all-versions', newest], { encoding: 'utf8' });
  const version = /^Version: (\S+)$/m.exec(shown.stdout ?? '')?.[1];
  return version === undefined ? undefined : { name: newest, version };
}

/** The newest of the directories in `cache` whose names match. */
function newestEntry(cache: string, name: RegExp): string | undefined {
  if (!existsSync(cache)) return undefined;
  const newest = readdirSync(cache)
    .filter((each) => name.test(each))
    .sort(byNumbers)
    .at(-1);
  return newest === undefined ? undefined : join(cache, newest);
}

/** Orders names as people do: 6.9 before 6.10. */
function byNumbers(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true });
}
