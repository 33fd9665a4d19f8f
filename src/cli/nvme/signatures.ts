/** What is on a disk, by the marks that file systems, volume managers and partition tables leave on it. */

/** How many bytes from the start of a disk {@link signaturesOf} looks at. */
export const SIGNATURE_BYTES = 0x10000 + 4096;

type Mark = readonly [what: string, at: number, mark: string | readonly number[]];

/** The marks, as libblkid and the formats' own headers have them. */
const MARKS: readonly Mark[] = [
  ['an ext2, ext3 or ext4 file system', 1024 + 0x38, [0x53, 0xef]],
  ['an XFS file system', 0, 'XFSB'],
  ['a Btrfs file system', 0x10040, '_BHRfS_M'],
  ['an F2FS file system', 1024, [0x10, 0x20, 0xf5, 0xf2]],
  ['an NTFS file system', 3, 'NTFS    '],
  ['an exFAT file system', 3, 'EXFAT   '],
  ['a FAT file system', 54, 'FAT1'],
  ['a FAT file system', 82, 'FAT32   '],
  ['an ISO 9660 file system', 0x8001, 'CD001'],
  ['a squashfs file system', 0, 'hsqs'],
  ['swap space', 4086, 'SWAPSPACE2'],
  ['a LUKS volume', 0, [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]],
  ['an LVM physical volume', 512, 'LABELONE'],
  ['an LVM physical volume', 0, 'LABELONE'],
  ['a member of an MD array', 4096, [0xfc, 0x4e, 0x2b, 0xa9]],
  ['a member of an MD array', 0, [0xfc, 0x4e, 0x2b, 0xa9]],
  ['a bcache device', 4096 + 24, [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]],
  // The label's uberblocks begin at 128 KiB; the name-value list of the label at 16 KiB names the pool.
  ['a member of a ZFS pool', 0x4000, [0x01, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]],
];

/**
 * What the first bytes of a disk say is on it, as noun phrases; empty when nothing is known.
 *
 * @param start the first bytes of the disk, up to {@link SIGNATURE_BYTES}
 * @param blockSize bytes of a block: a GUID partition table begins in the second one
 */
export function signaturesOf(start: Uint8Array, blockSize: number): string[] {
  const found = new Set<string>();
  const has = (at: number, mark: string | readonly number[]): boolean => {
    const bytes = typeof mark === 'string' ? [...Buffer.from(mark, 'latin1')] : mark;
    return bytes.every((byte, n) => start[at + n] === byte);
  };
  const isGuid = has(blockSize, 'EFI PART');
  if (isGuid) found.add('a GUID partition table');
  for (const [what, at, mark] of MARKS) if (has(at, mark)) found.add(what);
  // FAT and NTFS end their first sector in the same way as a table of partitions does.
  const isFat = [...found].some((what) => /FAT|NTFS/.test(what));
  if (!isGuid && !isFat && has(510, [0x55, 0xaa])) found.add('a partition table or boot sector (MBR)');
  return [...found];
}
